// What gradio's picture does not know: dragging over it draws a box. The corners, in pixels of the picture, are written
// into the hidden field #dragged, whose change the page listens to. A press that moves less than SLACK is a click.
() => {
  const SLACK = 5; // pixels of the screen
  let start = null; // {image, x, y, id} while the button is down
  let band = null; // what is drawn meanwhile
  let count = 0;
  let swallow = false; // the click that follows a drag is none

  const corner = (image, x, y) => {
    // the picture is centred in its element and never enlarged, as gradio's own clicks assume
    const frame = image.getBoundingClientRect();
    const scale = Math.min(frame.width / image.naturalWidth, frame.height / image.naturalHeight, 1);
    const inside = (at, low, length, natural) =>
      Math.round(Math.min(Math.max((at - low - (length - natural * scale) / 2) / scale, 0), natural - 1));
    return [
      inside(x, frame.left, frame.width, image.naturalWidth),
      inside(y, frame.top, frame.height, image.naturalHeight),
    ];
  };

  const forget = () => {
    if (band) band.remove();
    start = band = null;
  };

  const draw = (x, y) => {
    if (!band) {
      band = document.createElement("div");
      band.id = "band";
      band.style.cssText = "position:fixed;border:2px dashed #ffd600;outline:1px solid #000;pointer-events:none;z-index:99";
      document.body.append(band);
    }
    band.style.left = `${Math.min(x, start.x)}px`;
    band.style.top = `${Math.min(y, start.y)}px`;
    band.style.width = `${Math.abs(x - start.x)}px`;
    band.style.height = `${Math.abs(y - start.y)}px`;
  };

  const tell = (image, x, y) => {
    const field = document.querySelector("#dragged textarea, #dragged input");
    count += 1; // the same box twice is a change too
    field.value = [...corner(image, start.x, start.y), ...corner(image, x, y), count].join(",");
    field.dispatchEvent(new Event("input", { bubbles: true }));
  };

  addEventListener("dragstart", (event) => event.target.closest?.("[id^=picture]") && event.preventDefault(), true);
  addEventListener("pointerdown", (event) => {
    const image = event.target.closest?.("[id^=picture] .image-frame")?.querySelector("img");
    swallow = false;
    forget();
    if (image && event.button === 0) start = { image, x: event.clientX, y: event.clientY, id: event.pointerId };
  }, true);
  addEventListener("pointermove", (event) => {
    if (!start || event.pointerId !== start.id) return;
    if (band || Math.hypot(event.clientX - start.x, event.clientY - start.y) > SLACK) draw(event.clientX, event.clientY);
  }, true);
  addEventListener("pointerup", (event) => {
    if (start && band && event.pointerId === start.id) {
      tell(start.image, event.clientX, event.clientY);
      swallow = true;
    }
    forget();
  }, true);
  addEventListener("pointercancel", forget, true); // a finger that scrolls the page
  addEventListener("keydown", (event) => event.key === "Escape" && forget(), true);
  addEventListener("click", (event) => {
    if (swallow) event.stopImmediatePropagation();
    swallow = false;
  }, true);
}
