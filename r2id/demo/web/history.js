// The buttons are replaced whenever the latent changes: the one that was chosen keeps the focus.
element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) trigger("select", { key: button.dataset.key });
});
watch("value", () => {
  const key = element.contains(document.activeElement) && document.activeElement.dataset.key;
  if (key) requestAnimationFrame(() => element.querySelector(`[data-key="${key}"]`)?.focus());
});
