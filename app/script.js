/* Small things that the pages do without asking the server. */

// Captions and notes save themselves: a pause in writing counts as leaving the box.
let pause = 0;
document.addEventListener("input", (event) => {
  if (!event.target.closest("#caption, #note")) return;
  clearTimeout(pause);
  pause = setTimeout(() => event.target.dispatchEvent(new FocusEvent("blur")), 400);
});
document.addEventListener("focusout", () => clearTimeout(pause));

// Ctrl + arrow moves to the next or previous image while a caption is being written, and
// Ctrl + Enter presses the main button of the page.
document.addEventListener("keydown", (event) => {
  if (!event.ctrlKey && !event.metaKey) return;
  const press = (id) => {
    const button = document.getElementById(id);
    if (button && button.offsetParent) { event.preventDefault(); button.click(); }
  };
  if (event.key === "ArrowRight") press("next-image");
  if (event.key === "ArrowLeft") press("previous-image");
  if (event.key === "Enter") press("main-action");
});

// The line between off and on in a comparison follows its slider.
document.addEventListener("input", (event) => {
  if (!event.target.matches(".versus input")) return;
  event.target.closest(".versus").style.setProperty("--cut", `${event.target.value}%`);
});

// From the first touch on, what stands in the training form is a draft (see `draft.py`).
for (const touch of ["input", "click"]) {
  document.addEventListener(touch, (event) => {
    if (event.isTrusted && event.target.closest("#answers")) window.atelierDraft = "edited";
  }, true);
}
