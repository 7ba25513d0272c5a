"use strict";
(() => {
  if (typeof Plotly === "undefined") return;
  const merge = (base, over) => {
    const out = { ...base };
    for (const [key, value] of Object.entries(over)) {
      const both = value && out[key] && typeof value === "object" && typeof out[key] === "object";
      out[key] = both && !Array.isArray(value) ? merge(out[key], value) : value;
    }
    return out;
  };
  const colours = () => {
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    return { ink: colour("--ink"), quiet: colour("--quiet"), line: colour("--line"), card: colour("--card") };
  };
  const layoutOf = (layout) => {
    const { ink, quiet, line, card } = colours();
    const axis = {
      gridcolor: line, linecolor: line, zerolinecolor: line, tickfont: { color: quiet, size: 12 }, automargin: true,
      title: { font: { color: quiet, size: 12 }, standoff: 10 }, fixedrange: true,
    };
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", autosize: true, height: 300,
      font: { family: "system-ui, sans-serif", color: ink, size: 13 }, margin: { l: 48, r: 12, t: 12, b: 44 },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { color: quiet, size: 12 } },
      xaxis: axis, yaxis: axis, hovermode: "closest", dragmode: false,
    };
    return merge(base, layout);
  };
  const inInk = (value, ink) => JSON.parse(JSON.stringify(value).replaceAll('"ink"', JSON.stringify(ink)));
  const draw = () => {
    for (const source of document.querySelectorAll(".plot-data")) {
      const { data, layout } = inInk(JSON.parse(source.textContent), colours().ink);
      const place = source.parentElement.querySelector(".plot");
      Plotly.react(place, data, layoutOf(layout), { displayModeBar: false, responsive: true });
    }
  };
  document.addEventListener("themechange", draw);
  draw();
})();
