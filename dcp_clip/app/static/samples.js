// A row of pictures to click; the event "click" has the number of the picture.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-sample]");
  if (button) trigger("click", { index: Number(button.dataset.sample) });
});
