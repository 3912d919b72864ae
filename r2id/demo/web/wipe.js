// Two images, of which a handle shows more or less.
const [figure, pair, cut] = ["figure", "p", "input"].map(name => element.querySelector(name));
const box = pair.parentNode;
cut.oninput = () => box.style.setProperty("--cut", cut.value + "%");
watch("value", () => {
  pair.innerHTML = props.value.images;
  box.style.setProperty("--ratio", props.value.ratio);
  figure.lastElementChild.textContent = props.value.words;
  figure.hidden = false;
});
