"use strict";
(() => {
  const root = document.documentElement;
  const colour = (name) => getComputedStyle(root).getPropertyValue("--" + name).trim();
  const percent = (share) => (100 * share).toLocaleString("en", { maximumSignificantDigits: 3 }) + " %";
  const plots = [];
  const axis = (more) => Object.assign({
    stroke: () => colour("soft"), font: "12px system-ui, sans-serif", gap: 4,
    grid: { stroke: () => colour("line"), width: 1 }, ticks: { show: false },
  }, more);
  const still = { show: true, x: true, y: false, drag: { x: false, y: false }, points: { show: false } };

  function bars(spec) {
    const count = spec.now.length;
    const x = spec.now.map((_, i) => i + 0.5);
    const data = [x, spec.now];
    const series = [{}, {
      fill: () => colour("now"), stroke: () => colour("now"), width: 0,
      paths: uPlot.paths.bars({ size: [spec.between ? 0.94 : 0.72, 80] }), points: { show: false },
    }];
    if (spec.before) {
      data.push(spec.before);
      series.push({
        stroke: () => colour("before"), width: 2, points: { show: false },
        paths: (u, s, from, to) => {
          const path = new Path2D();
          for (let i = from; i <= to; i++) {
            const y = u.valToPos(spec.before[i], "y", true);
            const left = u.valToPos(i + (spec.between ? 0 : 0.1), "x", true);
            const right = u.valToPos(i + (spec.between ? 1 : 0.9), "x", true);
            if (i === from || !spec.between) path.moveTo(left, y); else path.lineTo(left, y);
            path.lineTo(right, y);
          }
          return { stroke: path, fill: null, clip: null };
        },
      });
    }
    const places = (u) => {
      const longest = Math.max(...spec.labels.map((label) => label.length));
      const most = Math.max(2, Math.floor(u.bbox.width / devicePixelRatio / (12 + 7 * Math.min(longest, 14))));
      let step = 1;
      while (spec.labels.length / step > most) step = step * 2;
      return spec.labels.map((_, i) => i).filter((i) => i % step === 0).map((i) => (spec.between ? i : i + 0.5));
    };
    const short = (label) => (label.length > 14 ? label.slice(0, 13) + "…" : label);
    return {
      data, series,
      scales: { x: { time: false, range: [0, count] }, y: { range: (u, low, high) => [0, (high || 1) * 1.06] } },
      axes: [
        axis({ size: 28, gap: 8, grid: { show: false }, splits: places, values: (u, at) => at.map((i) => short(spec.labels[Math.floor(i)])) }),
        axis({ size: 52, space: 36, values: (u, at) => at.map(percent) }),
      ],
      read: (i) => {
        const name = spec.between ? spec.labels[i] + " to " + spec.labels[i + 1] : spec.labels[i];
        const before = spec.before ? ", previous run " + percent(spec.before[i]) : "";
        return name + ": " + percent(spec.now[i]) + before;
      },
    };
  }

  function areas(spec) {
    const names = ["load", "read", "predict", "write"];
    const sums = names.map(() => []);
    spec.seconds.forEach((_, i) => {
      let sum = 0;
      names.forEach((_, s) => { sum += spec.stages[s][i]; sums[s].push(sum); });
    });
    const order = names.map((_, s) => s).reverse();
    return {
      data: [spec.seconds, ...order.map((s) => sums[s])],
      series: [{}, ...order.map((s) => ({
        fill: () => colour(names[s]), stroke: () => colour(names[s]), width: 0, points: { show: false },
        paths: uPlot.paths.stepped({ align: 1 }),
      }))],
      scales: { x: { time: false }, y: { range: (u, low, high) => [0, (high || 1) * 1.06] } },
      axes: [
        axis({ size: 28, gap: 8, space: 60, grid: { show: false }, values: (u, at) => at.map((v) => v + " s") }),
        axis({ size: 52, space: 36 }),
      ],
      read: (i) => spec.seconds[i].toFixed(1) + " s: " + names.map((name, s) => name + " " + spec.stages[s][i].toFixed(2)).join(", ") + " threads",
    };
  }

  function draw(figure, spec) {
    const box = figure.querySelector(".chart");
    const told = figure.querySelector("output");
    const { read, data, ...made } = (spec.seconds ? areas : bars)(spec);
    const size = () => ({ width: Math.max(200, box.clientWidth), height: box.clientHeight });
    const plot = new uPlot({
      ...size(), ...made, legend: { show: false }, cursor: still, padding: [8, 24, 0, 0],
      hooks: { setCursor: [(u) => { told.textContent = u.cursor.idx == null ? "" : read(u.cursor.idx); }] },
    }, data, box);
    const canvas = box.querySelector("canvas");
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", box.dataset.label);
    box.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (event.key === "Escape") plot.setCursor({ left: -10, top: -10 });
      if (!step) return;
      event.preventDefault();
      const at = plot.cursor.idx == null ? (step > 0 ? 0 : data[0].length - 1) : plot.cursor.idx + step;
      const index = Math.min(data[0].length - 1, Math.max(0, at));
      plot.setCursor({ left: plot.valToPos(data[0][index], "x"), top: 10 });
    });
    box.addEventListener("blur", () => plot.setCursor({ left: -10, top: -10 }));
    plots.push({ plot, size });
  }

  const specs = JSON.parse(document.getElementById("charts").textContent);
  document.querySelectorAll("figure[data-chart]").forEach((figure) => draw(figure, specs[figure.dataset.chart]));

  const again = () => plots.forEach(({ plot, size }) => { plot.setSize(size()); plot.redraw(false, true); });
  const print = (on) => { root.toggleAttribute("data-print", on); again(); };
  addEventListener("resize", again);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", again);
  matchMedia("print").addEventListener("change", (event) => print(event.matches));
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  root.dataset.drawn = String(plots.length);
})();
