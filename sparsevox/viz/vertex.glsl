// Positions of voxels, meshes and points. The page defines VOXELS, MESH or POINTS.
precision highp float;
precision highp int;
precision highp usampler2D;
uniform usampler2D places;  // steps from the origin; for voxels also the codes of the sides
uniform sampler2D tints;
uniform mat4 modelViewMatrix, projectionMatrix;
uniform vec3 cameraPosition, origin, size;
uniform float pointSize;
out vec3 vTint, vAt;
out vec2 vOn;  // position on a side, -1 to 1
out float vShade;
#ifdef VOXELS
const vec2 CORNER[6] = vec2[6](vec2(-1, -1), vec2(1, -1), vec2(1, 1), vec2(-1, -1), vec2(1, 1), vec2(-1, 1));
const int POWER[6] = int[6](1, 6, 36, 216, 1296, 7776);
#endif
void main() {
#ifdef VOXELS
  // At most one of two opposite sides faces the camera, so three sides of two triangles are enough.
  int row = gl_VertexID / 18, axis = gl_VertexID % 18 / 6;
#else
  int row = gl_VertexID;
#endif
  int width = textureSize(places, 0).x;
  ivec2 texel = ivec2(row % width, row / width);
  uvec4 place = texelFetch(places, texel, 0);
  vTint = texelFetch(tints, texel, 0).rgb;
  vAt = origin + size * vec3(place.xyz);
  vOn = vec2(0.0);
  vShade = 0.0;
  bool hidden = false;
#ifdef VOXELS
  bool upper = cameraPosition[axis] > vAt[axis];
  int code = int(place.w) / POWER[2 * axis + int(upper)] % 6;
  hidden = code == 0;
  vShade = float(code - 1) / 4.0;
  vOn = CORNER[gl_VertexID % 6];
  vec3 corner;
  corner[axis] = upper ? 1.0 : -1.0;
  corner[(axis + 1) % 3] = vOn.x;
  corner[(axis + 2) % 3] = vOn.y;
  vAt += 0.5 * size * corner;
#endif
  gl_PointSize = pointSize;
  gl_Position = hidden ? vec4(2.0, 2.0, 2.0, 1.0) : projectionMatrix * modelViewMatrix * vec4(vAt, 1.0);
}
