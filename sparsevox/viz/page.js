// Connects the data of the page to three.js. Python chooses shapes and colors; this script uploads them to the GPU and
// handles the controls. The URL stores the selection, so that
// page.html#shape=chair&level=0&color=normal&background=dark&view=35,30 links to a view (azimuth, elevation), and
// &against=other&split=0.5 shows another shape to the left of a movable line.
"use strict";
const $ = (id) => document.getElementById(id);
const manifest = JSON.parse($("manifest").textContent);
const { look, plain } = manifest;
const fail = (message) => { $("failed").textContent = message; };
addEventListener("error", (event) => fail(event.message));
addEventListener("unhandledrejection", (event) => fail(event.reason.message));

const renderer = new THREE.WebGLRenderer({ antialias: true, alpha: true });
document.body.prepend(renderer.domElement);
const scene = new THREE.Scene();
const camera = new THREE.PerspectiveCamera(35, 1, 0.01, 100);
camera.up.set(0, 0, 1);
const controls = new THREE.OrbitControls(camera, renderer.domElement);
controls.enableDamping = true;
controls.zoomToCursor = true;

// A frame is drawn when something has changed, and while the controls come to rest.
let waiting = false;
function draw() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    controls.update();
    // Depth has a limited resolution between these two, so they follow the camera toward single voxels.
    camera.near = controls.getDistance() / 50;
    camera.far = controls.getDistance() + 4 * Math.max(radius(shapeNow()), reach(state.against));
    camera.updateProjectionMatrix();
    render();
  });
}

// Left of the line the other shape, if there is one, and right of it the selected one.
function render() {
  const [first, second] = shown;
  if (!first) return;
  const parts = second ? [[second, 0, state.split], [first, state.split, 1]] : [[first, 0, 1]];
  renderer.setScissorTest(Boolean(second));
  for (const [object, from, to] of parts) {
    renderer.setScissor(innerWidth * from, 0, innerWidth * (to - from), innerHeight);
    scene.clear();
    scene.add(object);
    renderer.render(scene, camera);
  }
}
controls.addEventListener("change", draw);

const NONE = -1;  // in place of the number of another shape
const state = {
  shape: 0, level: 0, against: NONE, split: 0.5, color: manifest.color, background: manifest.background, view: [35, 30],
};
let shown = [];  // the objects of the selected shape and of the other one
const shapeNow = () => manifest.shapes[state.shape];
const middle = (shape) => [0, 1, 2].map((n) => (shape.bounds[0][n] + shape.bounds[1][n]) / 2);
const radius = (shape) => Math.hypot(...[0, 1, 2].map((n) => shape.bounds[1][n] - shape.bounds[0][n])) / 2 || 1;

// How far another shape reaches from the middle of the selected one.
function reach(other) {
  if (other === NONE) return 0;
  const [here, there] = [shapeNow(), manifest.shapes[other]].map(middle);
  return Math.hypot(...here.map((x, n) => x - there[n])) + radius(manifest.shapes[other]);
}

function resize() {
  renderer.setPixelRatio(Math.min(devicePixelRatio, 2));
  renderer.setSize(innerWidth, innerHeight);
  camera.aspect = innerWidth / innerHeight;
  draw();
}

function resetView() {
  const size = Math.max(radius(shapeNow()), reach(state.against));
  const [a, e] = state.view.map((degrees) => (degrees * Math.PI) / 180);
  const narrow = Math.min(1, innerWidth / innerHeight);
  const far = size / Math.sin((camera.fov * Math.PI) / 360) / narrow;
  camera.position.set(Math.cos(e) * Math.cos(a), Math.cos(e) * Math.sin(a), Math.sin(e)).multiplyScalar(far);
  controls.target.set(0, 0, 0);
  draw();
}

// The bytes of a level: planes of places, corners of triangles, planes of attributes. See html.py.
async function unpack(id) {
  const text = atob($(id).textContent);
  const packed = new Uint8Array(text.length);
  for (let n = 0; n < text.length; n++) packed[n] = text.charCodeAt(n);
  const source = new ReadableStream({ start(to) { to.enqueue(packed); to.close(); } });
  return new Response(source.pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

// Planes of channels become the texels of a texture, four channels each. The 18 corners of a voxel read the same texel:
// a single draw call, and in software rendering 2.7 times as fast as instances of 18 corners.
const WIDTH = 2048;
const interleave = (planes, rows, texels) => {
  for (let n = 0, c = 0; n < planes.length; c++) for (let r = 0; r < rows; r++) texels[r * 4 + c] = planes[n++];
};
function texture(type, format, code) {
  return (rows) => {
    const height = Math.ceil(rows / WIDTH) || 1;
    const made = new THREE.DataTexture(new type(WIDTH * height * 4), WIDTH, height, format, code);
    made.needsUpdate = true;
    return made;
  };
}
const placeTexture = texture(Uint16Array, THREE.RGBAIntegerFormat, THREE.UnsignedShortType);
const tintTexture = texture(Uint8Array, THREE.RGBAFormat, THREE.UnsignedByteType);

async function build(level, id, center) {
  const buffer = await unpack(id);
  const { kind, rows, faces } = level;
  let at = 0;
  // Copies, because the offset of a view must be a multiple of its element size.
  const take = (type, count) => new type(buffer.slice(at, (at += count * type.BYTES_PER_ELEMENT)));
  const [places, tints] = [placeTexture(rows), tintTexture(rows)];
  interleave(take(Uint16Array, rows * (kind === "voxels" ? 4 : 3)), rows, places.image.data);
  const geometry = new THREE.BufferGeometry();
  if (kind === "mesh") geometry.setIndex(new THREE.BufferAttribute(take(Uint32Array, faces * 3), 1));
  else geometry.setDrawRange(0, kind === "voxels" ? 18 * rows : rows);
  const width = (name) => (manifest.colors[name].kind === "rgb" ? 3 : 1);
  const codes = new Map(level.colors.map((name) => [name, take(Uint8Array, rows * width(name))]));

  const uniforms = {
    places, tints, origin: level.origin.map((o, n) => o - center[n]), size: level.size, pointSize: 3 * renderer.getPixelRatio(),
    light: look.light, shadow: look.tint, edge: look.edge, shade: look.shade,
  };
  const material = new THREE.RawShaderMaterial({
    glslVersion: THREE.GLSL3, side: THREE.DoubleSide, defines: { [kind.toUpperCase()]: 1 },
    vertexShader: $("vertex").textContent, fragmentShader: $("fragment").textContent,
    uniforms: Object.fromEntries(Object.entries(uniforms).map(([name, value]) => [name, { value }])),
  });
  const object = new (kind === "points" ? THREE.Points : THREE.Mesh)(geometry, material);
  object.frustumCulled = false;  // three.js cannot know where the shader puts things
  const dispose = () => [geometry, material, places, tints].forEach((part) => part.dispose());
  return { object, codes, places, tints, dispose };
}

const rgb = (color) => [1, 3, 5].map((n) => parseInt(color.slice(n, n + 2), 16));

// Write the color of each row. Levels without the attribute are plain.
function paint(built, level, number) {
  const [texels, places] = [built.tints.image.data, built.places.image.data];
  const codes = built.codes.get(state.color);
  if (codes && manifest.colors[state.color].kind === "rgb") {
    interleave(codes, level.rows, texels);
  } else {
    let table = [rgb(state.color === "level" ? manifest.levels[number % manifest.levels.length] : plain)];
    let entry = () => 0;
    if (codes) {
      table = manifest.colors[state.color].palette.map(rgb);
      entry = (row) => codes[row];
    } else if (state.color === "height") {
      table = manifest.height.map(rgb);
      const [low, high] = [0, 1].map((n) => (shapeNow().bounds[n][2] - level.origin[2]) / level.size[2]);
      const scale = 254 / (high - low || 1);
      entry = (row) => Math.round((places[row * 4 + 2] - low) * scale);
    }
    for (let row = 0; row < level.rows; row++) {
      const color = table[entry(row)];
      for (let c = 0; c < 3; c++) texels[row * 4 + c] = color[c];
    }
  }
  built.tints.needsUpdate = true;
}

function legend(level) {
  $("legend").replaceChildren();
  const add = (parent, tag, text = "") => Object.assign(parent.appendChild(document.createElement(tag)), { textContent: text });
  const bar = (palette, ends) => {
    const strip = add($("legend"), "div");
    strip.id = "bar";
    strip.style.background = `linear-gradient(to right, ${palette.slice(0, 255).filter((_, n) => n % 16 === 0 || n === 254)})`;
    const row = add($("legend"), "div");
    row.id = "ends";
    for (const end of ends) add(row, "span", Number(end.toPrecision(4)));
  };
  const coding = manifest.colors[state.color];
  if (coding && !level.colors.includes(state.color)) add($("legend"), "div", `this level has no ${state.color}`);
  else if (state.color === "height") bar(manifest.height, shapeNow().bounds.map((corner) => corner[2]));
  else if (coding?.kind === "scalar") bar(coding.palette, coding.range);
  else if (coding?.kind === "label") coding.classes.forEach((name, n) => {
    const row = add($("legend"), "div");
    add(row, "i").style.background = coding.palette[n];
    row.append(name);
  });
}

let cache = new Map();  // unpacked levels of the current shape and the other one
let latest = 0;
async function show() {
  const turn = ++latest;
  const shape = shapeNow();
  const level = shape.levels[state.level];
  const wanted = [[state.shape, state.level]];
  if (state.against !== NONE) {
    wanted.push([state.against, Math.min(state.level, manifest.shapes[state.against].levels.length - 1)]);
  }
  const objects = [];
  for (const [s, n] of wanted) {
    const [id, its] = [`data-${s}-${n}`, manifest.shapes[s].levels[n]];
    const built = cache.get(id) ?? (await build(its, id, middle(shape)));
    if (turn !== latest) return cache.has(id) || built.dispose();  // the selection has changed meanwhile
    cache.set(id, built);
    paint(built, its, n);
    objects.push(built.object);
  }
  shown = objects;
  $("shape").value = state.shape;
  $("against").value = state.against;
  $("splits").hidden = $("line").hidden = state.against === NONE;
  moveLine();
  $("level").max = shape.levels.length - 1;
  $("level").value = state.level;
  $("levels").hidden = shape.levels.length < 2;
  $("color").value = state.color;
  document.body.classList.toggle("dark", state.background === "dark");
  const which = shape.levels.length > 1 ? `level ${state.level} (0 is the coarsest): ` : "";
  $("info").textContent = which + level.text;
  legend(level);
  const hash = { shape: shape.name, level: state.level, color: state.color, background: state.background, view: state.view };
  if (state.against !== NONE) Object.assign(hash, { against: manifest.shapes[state.against].name, split: state.split });
  history.replaceState(null, "", "#" + new URLSearchParams(hash));
  draw();
}

function moveLine() {
  $("split").value = state.split;
  $("line").style.left = `${100 * state.split}%`;
}

function choose(change) {
  const shape = state.shape;
  Object.assign(state, change);
  state.level = Math.max(0, Math.min(state.level, shapeNow().levels.length - 1));
  if (shape !== state.shape) {
    for (const built of cache.values()) built.dispose();
    cache = new Map();
    resetView();
  }
  show().catch((error) => fail(error.message));
}

function readAddress() {
  const given = new URLSearchParams(location.hash.slice(1));
  const named = manifest.shapes.findIndex((shape) => shape.name === given.get("shape"));
  const shape = named < 0 ? state.shape : named;
  const level = Number(given.get("level") ?? manifest.shapes[shape].levels.length - 1);
  const other = given.has("against") ? given.get("against") : manifest.against;
  const split = Number(given.get("split") ?? state.split);
  const view = (given.get("view") ?? "").split(",").map(Number);
  if (view.length === 2 && view.every(Number.isFinite)) state.view = view;
  choose({
    shape, level: Number.isInteger(level) ? level : 0,
    against: manifest.shapes.findIndex((each) => each.name === other), split: split >= 0 && split <= 1 ? split : 0.5,
    color: colors.includes(given.get("color")) ? given.get("color") : state.color,
    background: given.get("background") ?? state.background,
  });
  resetView();
}

const colors = [...new Set(["height", "level", "plain", ...Object.keys(manifest.colors)])];
const next = (count, n) => (n + 1) % count;
const actions = {
  ArrowLeft: () => choose({ level: state.level - 1 }),
  ArrowRight: () => choose({ level: state.level + 1 }),
  c: () => choose({ color: colors[next(colors.length, colors.indexOf(state.color))] }),
  s: () => choose({ shape: next(manifest.shapes.length, state.shape) }),
  b: () => choose({ background: state.background === "dark" ? "light" : "dark" }),
  r: resetView,
};
$("against").add(new Option("nothing", NONE));
manifest.shapes.forEach((shape, n) => {
  for (const list of ["shape", "against"]) $(list).add(new Option(shape.name, n));
});
$("shapes").hidden = $("others").hidden = manifest.shapes.length < 2;
state.shape = Math.max(0, manifest.shapes.findIndex((shape) => shape.name === manifest.first));
for (const name of colors) $("color").add(new Option(name));
$("shape").onchange = (event) => { choose({ shape: Number(event.target.value) }); event.target.blur(); };
$("against").onchange = (event) => { choose({ against: Number(event.target.value) }); event.target.blur(); };
$("split").oninput = (event) => { state.split = Number(event.target.value); moveLine(); draw(); };
$("split").onchange = () => show();
$("color").onchange = (event) => { choose({ color: event.target.value }); event.target.blur(); };
$("level").oninput = (event) => { choose({ level: Number(event.target.value) }); event.target.blur(); };
$("background").onclick = actions.b;
$("reset").onclick = resetView;
addEventListener("keydown", (event) => {
  if (!event.ctrlKey && !event.metaKey && !event.altKey) actions[event.key]?.();
});
addEventListener("resize", resize);
addEventListener("hashchange", readAddress);
resize();
readAddress();
