// Shading, the same as in the pictures of png.py.
precision highp float;
uniform vec3 cameraPosition, light, shadow;
uniform float edge, shade;
in vec3 vTint, vAt;
in vec2 vOn;
in float vShade;
out vec4 color;
void main() {
  float bright = 1.0;
#ifdef POINTS
  if (length(gl_PointCoord - 0.5) > 0.5) discard;
#else
  // The normal of the triangle: meshes need not have normals, and sides of voxels are flat.
  vec3 normal = normalize(cross(dFdx(vAt), dFdy(vAt)));
  bright = dot(normal * normal, light);
#ifdef VOXELS
  bright *= 1.0 - shade * vShade;
  vec2 wide = fwidth(vOn);
  float line = 1.0 - smoothstep(0.4, 1.2, min((1.0 - abs(vOn.x)) / wide.x, (1.0 - abs(vOn.y)) / wide.y));
  // Lines fade out where voxels are only a few pixels large.
  bright *= 1.0 - edge * line * clamp(0.4 - max(wide.x, wide.y), 0.0, 0.3) / 0.3;
#else
  bright *= 0.55 + 0.45 * abs(dot(normal, normalize(cameraPosition - vAt)));
#endif
#endif
  color = vec4(vTint * pow(vec3(bright), shadow), 1.0);
}
