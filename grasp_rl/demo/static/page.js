// One script for both custom fields: the file chooser, and the image that is drawn on. `element` is the field itself.
// Listeners are on the field, so that they outlive the image in it.
element.addEventListener('change', (event) => {
  const input = event.target;
  if (input.type !== 'file' || !input.files.length) return;
  const file = input.files[0];
  if (file.size > Number(input.dataset.most)) {
    trigger('chosen', { too_large: true });
  } else {
    const reader = new FileReader();
    reader.onload = () => trigger('chosen',
      { content: reader.result.slice(reader.result.indexOf(',') + 1), name: file.name });
    reader.onerror = () => trigger('chosen', { content: '' });
    reader.readAsDataURL(file);
  }
  input.value = '';
});

let start = null, drawn = null;
const place = (event) => {
  const canvas = element.querySelector('.canvas'), seen = canvas.getBoundingClientRect();
  const inside = (value, most) => Math.min(Math.max(value, 0), most);
  const x = inside(event.clientX - seen.left, seen.width), y = inside(event.clientY - seen.top, seen.height);
  return { canvas, seen, x, y,
    column: (x / seen.width) * Number(canvas.dataset.width), row: (y / seen.height) * Number(canvas.dataset.height) };
};
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.canvas') || event.button !== 0) return;
  event.preventDefault();
  start = place(event);
  start.canvas.setPointerCapture(event.pointerId);
  drawn = document.createElement('div');
  drawn.className = 'drawn';
  start.canvas.append(drawn);
});
element.addEventListener('pointermove', (event) => {
  if (!start) return;
  const now = place(event);
  Object.assign(drawn.style, {
    left: Math.min(start.x, now.x) + 'px', top: Math.min(start.y, now.y) + 'px',
    width: Math.abs(now.x - start.x) + 'px', height: Math.abs(now.y - start.y) + 'px' });
});
element.addEventListener('pointerup', (event) => {
  if (!start) return;
  const now = place(event), from = start;
  start = null;
  drawn.remove();
  if (Math.abs(now.x - from.x) > 4 && Math.abs(now.y - from.y) > 4) {
    trigger('marked', { box: [from.column, from.row, now.column, now.row] });
  } else {
    trigger('marked', { point: [now.column, now.row], off: event.shiftKey });
  }
});
element.addEventListener('pointercancel', () => { if (start) { start = null; drawn.remove(); } });
