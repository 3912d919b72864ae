/* Functions of the tabs' events that run in the browser alone. */

/* saves a text as a file */
const saveText = ([name, type, content]) => {
  if (!content) return;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([content], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
};
