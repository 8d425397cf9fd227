// Run in the page by dashboard_test.py: texts below the contrast of WCAG 2.2 AA, and fields without a name.
() => {
  const found = [];
  // An opaque colour as [red, green, blue]; null for one that lets the ground through.
  const colour = (text) => {
    const [red, green, blue, alpha = 1] = text.match(/[\d.]+/g).map(Number);
    return alpha < 1 ? null : [red, green, blue];
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const ground = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const own = colour(getComputedStyle(at).backgroundColor);
      if (own) return own;
    }
    return [255, 255, 255];
  };
  for (const element of document.querySelectorAll("body *")) {
    const text = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.textContent.trim()) || element.matches("input, textarea");
    if (!text || !element.checkVisibility()) continue;
    const [ink, paper] = [colour(getComputedStyle(element).color), ground(element)].map(luminance);
    const ratio = (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
    if (ratio < 4.5) found.push(`${element.tagName} "${element.textContent.slice(0, 30)}" has ${ratio.toFixed(2)}`);
  }
  for (const field of document.querySelectorAll("input, select, textarea")) {
    if (!field.labels?.length && !field.ariaLabel) found.push(`${field.id} has no label`);
  }
  return found;
}
