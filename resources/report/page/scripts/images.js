// Images

const viewer = document.getElementById("viewer");
if (viewer) {
  const part = (name) => viewer.querySelector(`[data-part=${name}]`);
  const [group, prompt, left, right, slider, difference] = ["set", "prompt", "left", "right", "slider", "difference"].map(part);
  const stage = part("stage"), below = part("under"), above = part("over"), canvas = part("canvas");
  options(group, data.images.map((one, place) => [place, `${one.model} · ${one.sampling}`]), 0);
  group.closest("label").hidden = data.images.length < 2;
  const current = () => data.images[group.value];

  function chooseGroup() {
    const one = current();
    const names = (place) => one.methods.map((name, index) => [index, name]).filter((_, index) => index !== place);
    options(left, one.methods.map((name, index) => [index, name]), 0);
    options(right, one.methods.map((name, index) => [index, name]), Math.min(1, names(-1).length - 1));
    options(prompt, one.prompts.map(({ text, seed, worst_of: worst }, index) =>
      [index, (worst.length ? `worst of ${worst.slice(0, 3).join(", ")}${worst.length > 3 ? ` and ${worst.length - 3} more` : ""}: ` : "") + `${text} (seed ${seed})`]), 0);
    show();
  }

  function show() {
    const one = current();
    const of = (select) => one.pictures[select.value][prompt.value];
    below.src = of(left);
    above.src = of(right);
    const { text, seed } = one.prompts[prompt.value];
    below.alt = `${one.methods[left.value]}: ${text}, seed ${seed}`;
    above.alt = `${one.methods[right.value]}: ${text}, seed ${seed}`;
    const value = (select) => {
      const found = one.quality?.values[select.value][prompt.value];
      return one.methods[select.value] + (found === null || found === undefined ? "" : `: ${one.quality.title} ${number(found)} ${one.quality.unit}`);
    };
    part("left-name").textContent = value(left);
    part("right-name").textContent = value(right);
    stage.classList.toggle("exact", one.exact);
    move();
    drawDifference();
  }

  function move() {
    above.style.clipPath = `inset(0 0 0 ${slider.value}%)`;
    part("line").style.left = `${slider.value}%`;
    slider.setAttribute("aria-valuetext", `${slider.value} % ${current().methods[left.value]}`);
  }

  async function drawDifference() {
    canvas.hidden = !difference.checked;
    part("line").hidden = above.hidden = slider.hidden = difference.checked;
    if (!difference.checked) return;
    await Promise.all([below.decode(), above.decode()]);
    const { naturalWidth: wide, naturalHeight: high } = below;
    canvas.width = wide;
    canvas.height = high;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const pixels = [below, above].map((image) => {
      context.drawImage(image, 0, 0);
      return context.getImageData(0, 0, wide, high);
    });
    const [first, second] = pixels;
    let largest = 0;
    for (let i = 0; i < first.data.length; i += 1) {
      if (i % 4 < 3) largest = Math.max(largest, Math.abs(first.data[i] - second.data[i]));
    }
    const times = Math.max(1, Math.floor(255 / Math.max(largest, 1)));
    for (let i = 0; i < first.data.length; i += 1) {
      first.data[i] = i % 4 < 3 ? Math.min(255, times * Math.abs(first.data[i] - second.data[i])) : 255;
    }
    context.putImageData(first, 0, 0);
    part("times").textContent = largest === 0 ? "The two images are identical." : `Difference, ${times} times as strong; the largest is ${largest} of 255.`;
  }

  group.addEventListener("change", chooseGroup);
  for (const select of [prompt, left, right]) select.addEventListener("change", show);
  slider.addEventListener("input", move);
  difference.addEventListener("change", () => {
    part("times").hidden = !difference.checked;
    drawDifference();
  });
  viewer.hidden = false;
  chooseGroup();
}
