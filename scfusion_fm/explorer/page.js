"use strict";
// What is shown and what is told of it; `makePicture` draws. The bytes of a field are unpacked when it is first shown.
(async function () {
  const told = JSON.parse(document.getElementById("cells").textContent);
  const $ = (id) => document.getElementById(id);
  const MISSING = { true: 65535, false: 255 }, STEPS = { true: 65534, false: 254 };
  const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#332288", "#999933", "#882255",
    "#44aa99", "#aa4466", "#117733", "#ddaa33", "#6699cc", "#aa4499", "#661100", "#88ccee", "#bb5566", "#225522", "#ee8866"];
  const GREY = "#d5dae0", UNKNOWN = "#4a5560", RAMP = ["#440154", "#414487", "#2a788e", "#22a884", "#7ad151", "#fde725"];
  const unpacked = new Map();
  let shown = null, values = null, selected = null, selectedBy = "", hovered = -1;

  async function unpack(id) {
    const text = atob($(id).textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }
  async function codes(field) {  // steps of numbers, or numbers of categories
    if (!unpacked.has(field.blob)) {
      const buffer = await unpack(field.blob);
      unpacked.set(field.blob, field.fine ? new Uint16Array(buffer) : new Uint8Array(buffer));
    }
    return unpacked.get(field.blob);
  }
  async function numbers(field) {
    const found = await codes(field), out = new Float32Array(found.length);
    const missing = MISSING[field.fine], scale = (field.high - field.low) / STEPS[field.fine];
    for (let i = 0; i < found.length; i++) out[i] = found[i] === missing ? NaN : field.low + found[i] * scale;
    return out;
  }
  function element(tag, attributes = {}, ...children) {
    const made = Object.assign(document.createElement(tag), attributes);
    made.append(...children);
    return made;
  }
  const valueAt = async (field, i) => {
    const code = (await codes(field))[i];
    if (field.kind === "label") return field.categories[code] ?? "no value";
    return code === MISSING[field.fine] ? "n/a" : show(field.low + (code * (field.high - field.low)) / STEPS[field.fine]);
  };
  const count = (value) => value.toLocaleString("en");
  const show = (value) => (!Number.isFinite(value) ? "n/a" : Math.abs(value) < 1000 ? value.toPrecision(3) : count(Math.round(value)));
  const tones = (field) => {  // one per category; without a type stands "unknown", which is no type
    let next = 0;
    return field.categories.map((name) => (/^unknown$/i.test(name) ? UNKNOWN : COLOURS[next++ % COLOURS.length]));
  };
  const plural = (n) => `${count(n)} cell${n === 1 ? "" : "s"}`;

  // What can be shown.
  const cellFields = told.fields.filter((field) => field.kind === "label" || field.kind === "number");
  const proteinsOf = (kind) => told.fields.filter((field) => field.kind === kind);
  const kinds = Object.keys(told.kinds).filter((kind) => proteinsOf(kind).length);
  const mainLabel = cellFields.find((field) => field.kind === "label");
  const x = await numbers(told.x), y = await numbers(told.y);
  const names = new TextDecoder().decode(await unpack("names")).split("\n");

  document.querySelector("h1").textContent = told.title;
  document.querySelector(".lead").textContent = `${plural(told.n)}, ${told.layout}`;
  $("notes").textContent = ["Distances between groups and the size of groups mean nothing.", ...told.notes].join(" ");
  const menu = $("field");
  const group = (label, options) => options.length && menu.append(element("optgroup", { label },
    ...options.map(([value, text]) => element("option", { value, textContent: text }))));
  group("cells", cellFields.map((field, i) => [`cells:${i}`, field.name]));
  group("proteins", kinds.map((kind) => [kind, `protein, ${told.kinds[kind]}`]));

  function chosen() {
    if (!menu.value) return null;
    if (menu.value.startsWith("cells:")) return cellFields[Number(menu.value.slice(6))];
    const fields = proteinsOf(menu.value);
    return fields.find((field) => field.name.toLowerCase() === $("protein").value.toLowerCase()) || null;
  }
  function offerProteins() {
    const isProtein = menu.value && !menu.value.startsWith("cells:");
    $("protein-label").hidden = !isProtein;
    if (!isProtein) return;
    const fields = proteinsOf(menu.value);
    $("proteins").replaceChildren(...fields.map((field) => element("option", { value: field.name })));
    if (fields.some((field) => field.name === $("protein").value)) return;
    const both = new Set(proteinsOf("measured").map((field) => field.name));
    $("protein").value = (fields.find((field) => both.has(field.name)) || fields[0]).name;
  }

  // Colours: bytes of red, green, blue and opacity; cells that are not selected are faint, and below the others.
  const picture = makePicture($("plot"), x, y, { hover, lasso: (rows) => select(rows, "drawn around"),
    lost: () => { $("status").textContent = "The graphics card has let go of the picture. Load the page again."; } });
  const bytesOf = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
  const ramp = Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (RAMP.length - 1), at = Math.min(RAMP.length - 2, Math.floor(place));
    const [below, above] = [bytesOf(RAMP[at]), bytesOf(RAMP[at + 1])];
    return below.map((value, k) => value + (above[k] - value) * (place - at));
  });
  function colourCells() {
    const colours = new Uint8Array(4 * told.n), isIn = new Uint8Array(told.n), grey = bytesOf(GREY);
    const found = shown.kind === "label" && tones(shown).map(bytesOf), span = shown.high - shown.low || 1;
    const faint = Math.max(4, Math.min(16, 1500 / Math.sqrt(told.n)));  // many that lie on one another add up
    if (selected) for (const i of selected) isIn[i] = 1;
    for (let i = 0; i < told.n; i++) {
      const tone = found ? found[values[i]] || grey
        : Number.isNaN(values[i]) ? grey : ramp[Math.round((255 * (values[i] - shown.low)) / span)];
      colours.set(tone, 4 * i);
      colours[4 * i + 3] = selected && !isIn[i] ? faint : 215;
    }
    const order = new Uint32Array(told.n);
    let k = 0;
    for (const wanted of [0, 1]) for (let i = 0; i < told.n; i++) if (isIn[i] === wanted) order[k++] = i;
    picture.paint(colours, order);
  }
  async function paint() {
    const field = chosen();
    if (!field) return;
    const found = field.kind === "label" ? await codes(field) : await numbers(field);
    [shown, values] = [field, found];
    colourCells();
    drawLegend();
  }
  function drawLegend() {
    const head = element("h2", { textContent: titleOf(shown) });
    if (shown.kind !== "label") {
      const bar = element("div", { className: "ramp" });
      bar.style.background = `linear-gradient(to right, ${RAMP.join(", ")})`;
      const rest = [[values.some(Number.isNaN), "Grey: no value."], [shown.note, shown.note]].filter(([is]) => is)
        .map(([, textContent]) => element("p", { className: "note", textContent }));
      if (shown.low === shown.high) {
        $("legend").replaceChildren(head, element("p", { textContent: `${show(shown.low)} in all cells` }), ...rest);
        return;
      }
      $("legend").replaceChildren(head, bar, element("div", { className: "ends" },
        element("span", { textContent: show(shown.low) }), element("span", { textContent: show(shown.high) })), ...rest);
      return;
    }
    const counts = countCodes(values, null, shown.categories.length);
    const line = (name, tone, n, code) => {
      const swatch = element("span", { className: "swatch" });
      swatch.style.background = tone;
      const title = `select all ${name}`;
      return element("li", {}, element("button", { title, onclick: () => selectCategory(code, name) }, swatch,
        element("span", { className: "name", textContent: name }),
        element("span", { className: "count", textContent: count(n) })));
    };
    const found = tones(shown);
    const lines = shown.categories.map((name, code) => line(name, found[code], counts[code], code));
    const rest = values.length - counts.reduce((sum, n) => sum + n, 0);
    if (rest) lines.push(line("no value", GREY, rest, 255));
    $("legend").replaceChildren(head, element("ul", { className: "keys" }, ...lines));
  }
  function titleOf(field) {
    return field.kind in told.kinds ? `${field.name}, ${told.kinds[field.kind]}` : field.name;
  }
  function countCodes(found, rows, n) {
    const counts = new Array(n).fill(0);
    if (rows) for (const i of rows) { if (found[i] < n) counts[found[i]]++; }
    else for (const code of found) if (code < n) counts[code]++;
    return counts;
  }

  // Selections.
  async function select(rows, by) {
    selected = rows && rows.length ? rows : null;
    selectedBy = by;
    colourCells();
    await describeSelection();
  }
  async function selectCategory(code, name) {
    const rows = [];
    for (let i = 0; i < values.length; i++) if (values[i] === code) rows.push(i);
    await select(rows, name);
  }
  async function meanOf(field) {
    const found = await numbers(field);
    let sum = 0, n = 0;
    for (const i of selected) if (!Number.isNaN(found[i])) { sum += found[i]; n++; }
    return n ? sum / n : NaN;
  }
  async function findMarkers(kind) {  // difference of means, in standard deviations of all cells
    const isIn = new Uint8Array(told.n);
    for (const i of selected) isIn[i] = 1;
    const rows = [];
    for (const field of proteinsOf(kind)) {
      const found = await codes(field), sums = [0, 0], counts = [0, 0];
      let squares = 0;
      for (let i = 0; i < found.length; i++) {
        const code = found[i];
        if (code === 255) continue;
        sums[isIn[i]] += code; counts[isIn[i]]++; squares += code * code;
      }
      if (!counts[0] || !counts[1]) continue;
      const n = counts[0] + counts[1], mean = (sums[0] + sums[1]) / n, sd = Math.sqrt(squares / n - mean * mean);
      const step = (field.high - field.low) / STEPS.false, [out, own] = [sums[0] / counts[0], sums[1] / counts[1]];
      if (sd > 0) rows.push({ name: field.name, own: field.low + own * step, out: field.low + out * step,
        effect: (own - out) / sd });
    }
    return rows.sort((a, b) => b.effect - a.effect);
  }
  async function describeSelection() {
    const box = $("selection");
    if (!selected) {
      const text = "Draw around cells, or click on a category, to see what they are.";
      box.replaceChildren(element("h2", { textContent: "Selection" }), element("p", { className: "note", textContent: text }));
      return;
    }
    const share = ((100 * selected.length) / told.n).toFixed(1);
    const parts = [element("h2", { textContent: `${plural(selected.length)} selected (${share} %)` }),
      element("p", { className: "note", textContent: selectedBy })];
    parts.push(element("div", { className: "actions" },
      element("button", { id: "download", textContent: "download CSV", onclick: download }),
      element("button", { id: "clear", textContent: "clear", onclick: () => select(null, "") })));
    if (mainLabel) parts.push(...(await tableOfTypes()));
    const means = cellFields.filter((field) => field.kind === "number").slice(0, 6);
    if (means.length) {
      const lines = await Promise.all(means.map(async (field) => [field.name, show(await meanOf(field))]));
      parts.push(element("h3", { textContent: "means" }), element("table", {}, element("tbody", {},
        ...lines.map(([name, mean]) => element("tr", {}, element("td", { textContent: name }),
          element("td", { className: "number", textContent: mean }))))));
    }
    const kind = ["measured", "predicted"].find((one) => kinds.includes(one));
    if (kind) parts.push(...(await tableOfMarkers(kind)));
    box.replaceChildren(...parts);
  }
  async function tableOfTypes() {
    const counts = countCodes(await codes(mainLabel), selected, mainLabel.categories.length);
    const order = counts.map((n, code) => [n, code]).filter(([n]) => n).sort((a, b) => b[0] - a[0]);
    const found = tones(mainLabel);
    const lines = order.slice(0, 8).map(([n, code]) => {
      const bar = element("div", { className: "bar" });
      bar.style.width = `${(100 * n) / selected.length}%`;
      bar.style.background = found[code];
      return element("tr", {}, element("td", {}, mainLabel.categories[code], bar),
        element("td", { className: "number", textContent: count(n) }),
        element("td", { className: "number", textContent: `${((100 * n) / selected.length).toFixed(1)} %` }));
    });
    const more = order.length > 8 ? [element("p", { className: "note", textContent: `and ${order.length - 8} more` })] : [];
    return [element("h3", { textContent: mainLabel.name }), element("table", {}, element("tbody", {}, ...lines)), ...more];
  }
  async function tableOfMarkers(kind) {
    const markers = (await findMarkers(kind)).slice(0, 10);
    const heading = `proteins above the other cells, ${told.kinds[kind]}`;
    if (!markers.length) return [];
    const head = ["", "here", "others", "difference, SD"].map((text, i) =>
      element("th", { className: i ? "number" : "", textContent: text }));
    const lines = markers.map((row) => element("tr", {},
      element("td", {}, element("button", { textContent: row.name, title: "colour by it", onclick: () => {
        menu.value = kind; offerProteins(); $("protein").value = row.name; paint(); } })),
      ...[row.own, row.out, row.effect].map((value) => element("td", { className: "number", textContent: value.toFixed(2) }))));
    return [element("h3", { textContent: heading }), element("table", {}, element("thead", {}, element("tr", {}, ...head)),
      element("tbody", {}, ...lines))];
  }
  async function download() {
    const fields = cellFields.includes(shown) || !shown ? cellFields : [...cellFields, shown];
    const columns = await Promise.all(fields.map((field) => (field.kind === "label" ? codes(field) : numbers(field))));
    const quote = (text) => (/[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const lines = [["cell", "x", "y", ...fields.map(titleOf)].map(quote).join(",")];
    const write = (value) => (Number.isNaN(value) ? "" : String(Number(value.toPrecision(5))));
    for (const i of selected) {
      const cells = fields.map((field, k) => field.kind === "label"
        ? quote(field.categories[columns[k][i]] ?? "") : write(columns[k][i]));
      lines.push([quote(names[i]), write(x[i]), write(y[i]), ...cells].join(","));
    }
    const link = element("a", { download: "selection.csv",
      href: URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" })) });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // What happens when.
  async function hover(i) {
    hovered = i;
    const parts = i < 0 ? [] : [names[i]];
    const same = (field) => field === shown || (shown && shown.kind in told.kinds && field.kind in told.kinds
      && field.name === shown.name);
    const fields = i < 0 ? [] : told.fields.filter((one) => same(one) || cellFields.indexOf(one) in [0, 1, 2]);
    for (const field of fields) parts.push(`${titleOf(field)}: ${await valueAt(field, i)}`);
    if (hovered === i) $("status").textContent = parts.join("   ·   ");
  }
  for (const mode of ["lasso", "pan"])
    $(mode).onclick = () => {
      for (const other of ["lasso", "pan"]) $(other).ariaPressed = String(other === mode);
      picture.setMode(mode);
    };
  $("reset").onclick = picture.reset;
  menu.onchange = () => { offerProteins(); paint(); };
  $("protein").onchange = paint;
  offerProteins();
  await paint();
  await describeSelection();
  picture.setMode("lasso");
  document.body.dataset.ready = "true";
  window.explorer = { select, selectedRows: () => selected, toPixel: picture.toPixel };
})().catch((error) => {
  document.getElementById("status").textContent = `This page needs a browser of 2023 or later with WebGL (${error.message}).`;
});
