// Keeps the figures of the page up to date while it is in view.
async function refresh() {
  if (document.hidden) return;
  const answer = await fetch("/status.json", { cache: "no-store" });
  if (!answer.ok) return;
  const status = await answer.json();
  status.uptime = (status.uptime_ns / 1e9).toFixed(1) + " s";
  status.heap = Math.floor(status.heap_bytes / 1024);
  for (const field of document.querySelectorAll("[data-field]")) {
    const value = status[field.dataset.field];
    if (value !== undefined) field.textContent = value;
  }
}
setInterval(() => refresh().catch(() => {}), 2000);
