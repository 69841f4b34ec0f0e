// Starts every part of the page, and says who answers and what task this is.
import { askAgain, startAsking } from "./asking.js";
import { startAnswers } from "./answers.js";
import { startExamples } from "./examples.js";
import { startKeeping } from "./keep.js";
import { startLearning } from "./learning.js";
import { startPicking } from "./pick.js";
import { startSizes } from "./sizes.js";
import { startTools } from "./tools.js";
import { call } from "./server.js";
import { changed, drawnBy, isEdited, state } from "./state.js";

function draw() {
  const { name, source, trainedOn } = state.origin;
  const edited = isEdited() ? ", changed" : "";
  document.getElementById("name").textContent = source ? `Task ${name}` : name;
  document.title = `${name}, ARC playground`;
  const about = document.getElementById("about");
  about.classList.toggle("warns", Boolean(trainedOn));
  const words = trainedOn
    ? "The student was trained on this task: its answer shows memory, not skill."
    : "The student was not trained on it.";
  about.textContent = source ? `${source}${edited}. ${words}` : "a task of your own";
}

async function tellHealth() {
  const place = document.getElementById("health");
  try {
    const { student, parameters, step, teacher, max_demonstrations: most } = await call("health");
    state.reads = most;
    changed();
    const facts = [
      `Student: ${student}`,
      `${parameters.toLocaleString("en")} parameters`,
      `trained for ${step} steps`,
      teacher === "none" ? "no teacher" : `teacher: ${teacher}`,
    ];
    place.textContent = `${facts.join(", ")}.`;
  } catch (error) {
    place.textContent = error.message;
  }
}

document.querySelector("#trouble button").addEventListener("click", askAgain);
startSizes();
startTools();
startExamples();
startAnswers();
startLearning();
startKeeping();
startAsking();
startPicking();
drawnBy(draw);
tellHealth();
