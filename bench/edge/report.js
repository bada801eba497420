// Figures as a Markdown table and as bars.

export function median(numbers) {
  const sorted = [...numbers].sort((a, b) => a - b);
  const middle = Math.floor(sorted.length / 2);
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

const digits = (value) => (Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2);
const shown = (value) => value.toFixed(digits(value));

/** `median (least to most)`, or a dash. */
export function spread(numbers) {
  if (!numbers?.length) return '-';
  return `${shown(median(numbers))} (${shown(Math.min(...numbers))} to ${shown(Math.max(...numbers))})`;
}

/** Each round's figure by the same round's of another. */
export function ratios(numbers = [], base = []) {
  return numbers.map((value, round) => value / base[round]).filter(Number.isFinite);
}

export function table(rows) {
  const widths = rows[0].map((_, column) => Math.max(...rows.map((row) => row[column].length)));
  const lines = rows.map((row) => `| ${row.map((cell, column) => cell.padEnd(widths[column])).join(' | ')} |`);
  lines.splice(1, 0, `| ${widths.map((width) => '-'.repeat(width)).join(' | ')} |`);
  return lines.join('\n');
}

const escaped = (text) => text.replaceAll('&', '&amp;').replaceAll('<', '&lt;').replaceAll('>', '&gt;');

const WIDTH = 880;
const LABEL = 330;
const RIGHT = 90;
const BAR = 22;
const HEAD = 46;

/**
 * Panels of horizontal bars, one below the other, as SVG: `[{ title, bars: [{ label, values, ours }] }]`.
 * A bar ends at the median; the line over it goes from the least to the most.
 */
export function plot(panels) {
  const parts = [];
  let top = 10;
  for (const { title, bars } of panels.filter((panel) => panel.bars.length > 0)) {
    const most = Math.max(...bars.flatMap(({ values }) => values));
    const x = (value) => LABEL + (value / most) * (WIDTH - LABEL - RIGHT);
    parts.push(`<text x="10" y="${top + 22}" font-weight="bold">${escaped(title)}</text>`);
    bars.forEach(({ label, values, ours }, index) => {
      const y = top + HEAD + index * BAR;
      const middle = median(values);
      const [left, right] = [x(Math.min(...values)), x(Math.max(...values))].map((at) => at.toFixed(1));
      const centre = y + BAR / 2 - 3;
      parts.push(
        `<text x="${LABEL - 8}" y="${y + 13}" text-anchor="end">${escaped(label)}</text>`,
        `<rect x="${LABEL}" y="${y}" width="${(x(middle) - LABEL).toFixed(1)}" height="${BAR - 6}" fill="${ours ? '#2f6f4f' : '#9fb3c8'}"/>`,
        `<line x1="${left}" x2="${right}" y1="${centre}" y2="${centre}" stroke="#222"/>`,
        `<text x="${(Math.max(x(middle), Number(right)) + 6).toFixed(1)}" y="${y + 13}">${shown(middle)}</text>`,
      );
    });
    top += HEAD + bars.length * BAR + 14;
  }
  return [
    `<svg xmlns="http://www.w3.org/2000/svg" width="${WIDTH}" height="${top}" viewBox="0 0 ${WIDTH} ${top}" font-family="sans-serif" font-size="13">`,
    `<rect width="${WIDTH}" height="${top}" fill="#fff"/>`,
    ...parts,
    '</svg>\n',
  ].join('\n');
}
