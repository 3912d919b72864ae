/* Functions of the tabs' events that run in the browser alone. */

/* saves a text as a file, or what a data URI holds */
const saveText = ([name, type, content]) => {
  if (!content) return;
  const link = document.createElement("a");
  link.href = content.startsWith("data:") ? content : URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};

/* tab Word: the row has this height from now on; the part of it that is seen, for a file */
const resizeRow = height =>
  document.querySelector(".stage.row")?.parentNode.dispatchEvent(new CustomEvent("height", { detail: height }));
const seenRow = (word, height) => {
  const { x, y, zoom } = R2ID.row.view.view ?? { x: 0.5, y: 0.5, zoom: 1 };
  return [word, height, [x, y, zoom]];
};
