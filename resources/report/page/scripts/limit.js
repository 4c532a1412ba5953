// The limit of quality: the answers under every limit stand in the page, one of them is shown

let redraw = () => {};
document.querySelectorAll("[data-answer]").forEach((article, place) => {
  const input = article.querySelector("input.limit");
  if (!input) return;
  const steps = [...article.querySelectorAll("[data-step]")], milder = input.dataset.milder === "true";
  const reset = article.querySelector(".reset"), first = input.value;

  function move() {
    const limit = Number(input.value === "" ? first : input.value);
    const holds = ({ dataset: { step } }) => step === "" || (milder ? Number(step) <= limit : Number(step) >= limit);
    const shown = steps.find(holds);
    for (const step of steps) step.hidden = step !== shown;
    reset.hidden = limit === Number(first);
    const { take, second } = shown.dataset;
    for (const card of article.querySelectorAll(".card")) {
      const { method, role } = card.dataset, old = ["take", "second"].includes(role) ? "" : role;
      const badge = card.querySelector(".role");
      badge.textContent = method === take ? "take" : method === second ? "second" : reset.hidden ? role : old;
      badge.hidden = badge.textContent === "";
      card.classList.toggle("first", method === take);
    }
    const group = data.groups.find(({ title }) => title === data.answers[place]);
    for (const method of group?.methods ?? []) method.taken = method.name === take ? "first" : method.name === second ? "second" : null;
    redraw();
  }

  input.addEventListener("input", move);
  reset.addEventListener("click", () => {
    input.value = first;
    move();
  });
  for (const part of article.querySelectorAll(".limits")) part.hidden = part.tagName === "SPAN";
});
