"use strict";
(() => {
  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") made.className = value;
      else made.setAttribute(key, value);
    }
    made.append(...children);
    return made;
  };
  const nothing = "data:image/gif;base64,R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7";

  /* A figure with an image, labels over it, the patient's sides and a scale bar. */
  const picture = (title, subject) => {
    const image = element("img", { class: "image", alt: "", src: nothing });
    const labels = element("img", { class: "labels", alt: "", src: nothing });
    const frame = element("div", { class: "frame" }, image, labels);
    for (const [side, letter] of Object.entries(subject.sides)) {
      frame.append(element("span", { class: `side ${side}`, "aria-hidden": "true" }, letter));
    }
    const steps = [1, 2, 5, 10, 20, 50, 100];
    const length = steps.filter((mm) => mm <= subject.side_mm / 4).pop() || subject.side_mm / 4;
    const bar = element("span", { class: "scale", "aria-hidden": "true" }, `${length} mm`);
    bar.style.width = `${(100 * length) / subject.side_mm}%`;
    frame.append(bar);
    const caption = element("figcaption", {}, title);
    return { figure: element("figure", {}, frame, caption), image, labels, caption, title };
  };

  const browse = (article) => {
    const subject = JSON.parse(article.querySelector(".slice-data").textContent);
    const slider = article.querySelector(".slider");
    const under = article.querySelector(".under");
    const opacity = article.querySelector(".opacity");
    const place = article.querySelector(".pictures");
    const plain = subject.modalities.map((name) => picture(name, subject));
    const kinds = [
      ["truth", "truth"], ["prediction", "prediction"], ["errors", "errors"], ["compared", `prediction of ${subject.compared}`],
    ];
    const labelled = kinds
      .filter(([kind]) => subject.slices.some((slice) => slice[kind] !== null))
      .map(([kind, title]) => ({ kind, ...picture(title, subject) }));
    const count = plain.length + labelled.length;
    place.style.setProperty("--columns", String(Math.ceil(count / Math.ceil(count / 6))));
    place.append(...plain.map((part) => part.figure), ...labelled.map((part) => part.figure));

    const saidOf = (said) => {
      const text = element("p");
      for (const [sentence, changed] of said.sentences) {
        if (changed === null) {
          text.append(sentence, " ");
          continue;
        }
        const percent = `${Math.round(100 * changed)} %`;
        const mark = element("mark", { title: `without it ${percent} of the mask changes` }, sentence);
        mark.style.setProperty("--weight", String(Math.min(1, changed)));
        text.append(mark, element("sup", {}, percent), " ");
      }
      if (!said.sentences.length) text.append(element("em", {}, "nothing was said"));
      if (said.cut) text.append(element("em", { class: "cut" }, "(cut at the limit of its length)"));
      return [element("h4", {}, said.of), text];
    };

    const show = () => {
      const index = Number(slider.value);
      const slice = subject.slices[index];
      const position = `${slice.number} (${index + 1} of ${subject.slices.length})`;
      article.querySelector("output").textContent = position;
      slider.setAttribute("aria-valuetext", `slice ${position}`);
      plain.forEach((part, number) => {
        part.image.src = slice.images[number];
        part.image.alt = `${part.title}, slice ${slice.number} of ${subject.name}`;
      });
      const below = slice.images[under ? Number(under.value) : 0] || nothing;
      for (const part of labelled) {
        const shown = slice[part.kind];
        part.image.src = below;
        part.labels.src = (shown && shown.url) || nothing;
        let says = "";
        if (shown === null) says = part.kind === "truth" ? "no labels" : "none";
        else if (shown.url === null) {
          says = { truth: "nothing labelled", errors: "no difference" }[part.kind] || "nothing predicted";
        }
        part.caption.textContent = says ? `${part.title}: ${says}` : part.title;
        const what = shown && shown.classes && shown.classes.length ? `: ${shown.classes.join(", ")}` : "";
        part.image.alt = `${part.title} of slice ${slice.number} of ${subject.name}${what}${says ? `: ${says}` : ""}`;
      }
      const asked = subject.slices.some((other) => other.said.length);
      const silent = asked && !slice.said.length ? [element("p", {}, element("em", {}, "no text of this slice"))] : [];
      article.querySelector(".said").replaceChildren(...slice.said.flatMap(saidOf), ...silent);
      const scores = slice.scores.map(([name, dsc]) =>
        element("li", {}, element("span", {}, name), element("b", {}, dsc.toFixed(3))));
      article.querySelector(".scores").replaceChildren(
        ...(scores.length ? [element("h4", {}, "DSC of this slice (256 px)"), element("ul", {}, ...scores)] : []));
    };

    const move = (to) => {
      slider.value = String(Math.max(0, Math.min(subject.slices.length - 1, to)));
      show();
    };
    slider.addEventListener("input", show);
    if (under) under.addEventListener("change", show);
    opacity.addEventListener("input", () => article.style.setProperty("--labels", String(opacity.value / 100)));
    article.addEventListener("keydown", (event) => {
      if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("select, input")) return;
      const now = Number(slider.value);
      const to = {
        ArrowLeft: now - 1, ArrowDown: now - 1, ArrowRight: now + 1, ArrowUp: now + 1,
        PageDown: now - 5, PageUp: now + 5, Home: 0, End: subject.slices.length - 1,
      }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      move(to);
    });
    show();
  };
  document.querySelectorAll(".subject").forEach((article) => {
    if (article.querySelector(".slice-data")) browse(article);
  });
})();
