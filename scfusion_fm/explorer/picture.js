"use strict";
// The picture: points in WebGL, and a canvas above them that takes the pointer and shows the lasso. Moving and zooming
// change two numbers of the drawing; colours are four bytes per point.
function makePicture(box, x, y, events) {
  const SHADERS = [
    `#version 300 es
    in vec2 place; in vec4 tone; uniform vec2 centre; uniform vec2 scale; uniform float size; out vec4 colour;
    void main() { gl_Position = vec4((place - centre) * scale, 0.0, 1.0); gl_PointSize = size; colour = tone; }`,
    `#version 300 es
    precision mediump float; in vec4 colour; out vec4 pixel;
    void main() { float a = colour.a * smoothstep(0.5, 0.38, length(gl_PointCoord - 0.5));
      if (a < 0.004) discard; pixel = vec4(colour.rgb * a, a); }`];
  const n = x.length, MARGIN = 0.94, NEAR_PX = 7, CELLS = 160;
  const canvas = box.appendChild(document.createElement("canvas")), above = box.appendChild(document.createElement("canvas"));
  const gl = canvas.getContext("webgl2", { antialias: false, powerPreference: "high-performance" });
  if (!gl) throw new Error("no WebGL 2");
  const pen = above.getContext("2d"), program = gl.createProgram();
  for (const [i, kind] of [gl.VERTEX_SHADER, gl.FRAGMENT_SHADER].entries()) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, SHADERS[i]); gl.compileShader(shader); gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
  gl.useProgram(program);
  const uniform = Object.fromEntries(["centre", "scale", "size"].map((name) => [name, gl.getUniformLocation(program, name)]));
  const [ends, ofX, ofY] = [gl.createBuffer(), extent(x), extent(y)];
  const places = new Float32Array(2 * n);  // around the middle, for the precision of the graphics card
  const middle = [(ofX[0] + ofX[1]) / 2, (ofY[0] + ofY[1]) / 2];
  for (let i = 0; i < n; i++) { places[2 * i] = x[i] - middle[0]; places[2 * i + 1] = y[i] - middle[1]; }
  function attribute(name, width, kind, isShare, data) {
    const buffer = gl.createBuffer(), at = gl.getAttribLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, buffer);
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(at);
    gl.vertexAttribPointer(at, width, kind, isShare, 0, 0);
    return buffer;
  }
  attribute("place", 2, gl.FLOAT, false, places);
  const tones = attribute("tone", 4, gl.UNSIGNED_BYTE, true, new Uint8Array(4 * n));
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, ends);
  gl.enable(gl.BLEND);
  gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
  gl.clearColor(1, 1, 1, 1);

  const view = { x: 0, y: 0, zoom: 1 };
  let mode = "lasso", width = 1, height = 1, ratio = 1, isDue = false, grid = null, pressed = null, polygon = [];
  function extent(values) {
    let [low, high] = [Infinity, -Infinity];
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return [low, high === low ? low + 1 : high];
  }
  const unit = () => MARGIN * Math.min(width / (ofX[1] - ofX[0]), height / (ofY[1] - ofY[0])) * view.zoom;  // pixels
  const toPixel = (i) => [width / 2 + (x[i] - middle[0] - view.x) * unit(), height / 2 - (y[i] - middle[1] - view.y) * unit()];
  const toData = ([a, b]) => [middle[0] + view.x + (a - width / 2) / unit(), middle[1] + view.y - (b - height / 2) / unit()];
  function draw() {
    isDue = false;
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(uniform.centre, view.x, view.y);
    gl.uniform2f(uniform.scale, (2 * unit()) / width, (2 * unit()) / height);
    const size = Math.max(2.2, Math.min(8, 260 / Math.sqrt(n))) * Math.min(2.5, Math.pow(view.zoom, 0.35));
    gl.uniform1f(uniform.size, size * ratio);
    gl.drawElements(gl.POINTS, n, gl.UNSIGNED_INT, 0);
  }
  function redraw() {
    if (!isDue) requestAnimationFrame(draw);
    isDue = true;
  }
  function paint(colours, order) {  // four bytes per point; which points come first, and so below the others
    gl.bindBuffer(gl.ARRAY_BUFFER, tones);
    gl.bufferData(gl.ARRAY_BUFFER, colours, gl.DYNAMIC_DRAW);
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, order, gl.DYNAMIC_DRAW);
    redraw();
  }
  function resize() {
    [width, height, ratio] = [box.clientWidth || 1, box.clientHeight || 1, window.devicePixelRatio || 1];
    for (const one of [canvas, above]) { one.width = width * ratio; one.height = height * ratio; }
    pen.scale(ratio, ratio);
    draw();
  }
  function inside(corners) {  // of a polygon: by how often a ray to the right crosses it
    const rows = [], xs = corners.map((one) => one[0]), ys = corners.map((one) => one[1]);
    const [left, right] = extent(xs), [low, high] = extent(ys);
    for (let i = 0; i < n; i++) {
      if (x[i] < left || x[i] > right || y[i] < low || y[i] > high) continue;
      let isInside = false;
      for (let a = 0, b = xs.length - 1; a < xs.length; b = a++)
        if (ys[a] > y[i] !== ys[b] > y[i] && x[i] < ((xs[b] - xs[a]) * (y[i] - ys[a])) / (ys[b] - ys[a]) + xs[a])
          isInside = !isInside;
      if (isInside) rows.push(i);
    }
    return rows;
  }
  const cellOf = (value, [low, high]) => Math.min(CELLS - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * CELLS)));
  function nearest(pixel) {  // among the points of neighbouring squares
    if (!grid) {
      grid = Array.from({ length: CELLS * CELLS }, () => []);
      for (let i = 0; i < n; i++) grid[cellOf(x[i], ofX) * CELLS + cellOf(y[i], ofY)].push(i);
    }
    const reach = NEAR_PX / unit(), [a, b] = toData(pixel);
    let [found, least] = [-1, reach * reach];
    for (let i = cellOf(a - reach, ofX); i <= cellOf(a + reach, ofX); i++)
      for (let j = cellOf(b - reach, ofY); j <= cellOf(b + reach, ofY); j++)
        for (const one of grid[i * CELLS + j]) {
          const distance = (x[one] - a) ** 2 + (y[one] - b) ** 2;
          if (distance < least) [found, least] = [one, distance];
        }
    return found;
  }
  function drawPolygon() {
    pen.clearRect(0, 0, width, height);
    if (polygon.length < 2) return;
    pen.beginPath();
    for (const [a, b] of polygon) pen.lineTo(a, b);
    pen.closePath();
    pen.fillStyle = "#0072b218"; pen.fill();
    pen.setLineDash([4, 3]); pen.strokeStyle = "#1d2733"; pen.stroke();
  }
  function reset() {
    Object.assign(view, { x: 0, y: 0, zoom: 1 });
    redraw();
  }
  const at = (event) => [event.offsetX, event.offsetY];
  above.onpointerdown = (event) => {
    if (event.button !== 0) return;
    above.setPointerCapture(event.pointerId);
    pressed = { at: at(event), moves: (mode === "pan") !== event.shiftKey };
    polygon = [at(event)];
  };
  above.onpointermove = (event) => {
    const [a, b] = at(event);
    if (!pressed) { events.hover(nearest([a, b])); return; }
    if (pressed.moves) {
      view.x -= (a - pressed.at[0]) / unit();
      view.y += (b - pressed.at[1]) / unit();
      pressed.at = [a, b];
      redraw();
    } else { polygon.push([a, b]); drawPolygon(); }
  };
  above.onpointerup = above.onpointercancel = () => {
    const drawn = pressed && !pressed.moves && polygon.length > 2 ? polygon.map(toData) : null;
    [pressed, polygon] = [null, []];
    drawPolygon();
    if (drawn) events.lasso(inside(drawn));
  };
  above.onpointerleave = () => events.hover(-1);
  above.onwheel = (event) => {
    event.preventDefault();
    const before = toData(at(event));
    view.zoom = Math.min(500, Math.max(0.5, view.zoom * Math.exp(-event.deltaY / 500)));
    const after = toData(at(event));
    view.x += before[0] - after[0];
    view.y += before[1] - after[1];
    redraw();
  };
  canvas.addEventListener("webglcontextlost", (event) => { event.preventDefault(); events.lost(); });
  new ResizeObserver(resize).observe(box);
  return { paint, reset, toPixel, setMode: (name) => { mode = name; above.style.cursor = name === "pan" ? "grab" : "crosshair"; },
    resize };
}
