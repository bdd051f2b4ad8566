// Asks the model below /ml what goes with the ticked articles, as the customer who is logged in.
const section = document.querySelector(".what-if");
const boxes = [...section.querySelectorAll("input")];
const said = section.querySelector("output");
const { url } = document.currentScript.dataset;
const token = document.querySelector("meta[name=csrf-token]").content;
let latest = 0;

async function ask() {
  const own = ++latest;
  const basket = boxes.map((box) => Number(box.checked));
  const answer = await fetch(url, {
    method: "POST",
    headers: { "X-CSRFToken": token },
    body: JSON.stringify({ instances: [basket] }),
  });
  if (own !== latest) return; // a later question was asked meanwhile
  if (!answer.ok) {
    const isOver = [400, 401].includes(answer.status); // the login, and the page's token with it
    said.textContent = isOver ? "Please load the page again." : "No answer.";
    return;
  }
  const [scores] = (await answer.json()).predictions;
  const best = scores.map((score, article) => [score, article]).filter(([, article]) => !basket[article]);
  const names = best.sort(([one], [other]) => other - one).slice(0, 3);
  said.textContent = names.map(([score, article]) =>
    `${boxes[article].parentNode.textContent.trim()} ${Math.round(100 * score)} %`).join(", ");
}

section.addEventListener("change", ask);
