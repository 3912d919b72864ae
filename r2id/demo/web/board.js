// A board to draw on. The drawing travels as a PNG with a transparent background; "input" is triggered after every stroke.
const board = element.querySelector("canvas"), pen = board.getContext("2d");
let last = null;
const send = image => { props.value = image; trigger("input"); };
const paint = () => { board.style.background = props.ground; };
const line = event => {
  const scale = board.width / board.clientWidth, to = [event.offsetX * scale, event.offsetY * scale];
  Object.assign(pen, { strokeStyle: props.ink, lineWidth: board.width * 0.09, lineCap: "round" });
  pen.beginPath();
  pen.moveTo(...(last ?? to));
  pen.lineTo(...to);
  pen.stroke();
  last = to;
};
board.onpointerdown = event => { if (!event.button) { board.setPointerCapture(event.pointerId); line(event); } };
board.onpointermove = event => { if (last) line(event); };
board.onpointerup = board.onpointercancel = () => { if (last) { last = null; send(board.toDataURL()); } };
element.querySelector("button").onclick = () => { pen.clearRect(0, 0, board.width, board.height); send(""); };
watch("ground", paint);
paint();
