// Builds the page into dist/: three files, each also packed, and no larger than a first load may be.
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const FIRST_LOAD_BYTES_MAX = 300 * 1024;

await build({
  entryPoints: { console: "src/main.ts" },
  bundle: true,
  format: "esm",
  legalComments: "inline",
  minify: true,
  outdir: "dist",
  target: "es2022",
});
mkdirSync("dist", { recursive: true });
writeFileSync("dist/index.html", readFileSync("src/index.html"));

let sum = 0;
for (const name of ["index.html", "console.js", "console.css"]) {
  const packed = gzipSync(readFileSync(`dist/${name}`), { level: 9 });
  writeFileSync(`dist/${name}.gz`, packed);
  sum += packed.length;
}
console.log(`console: a first load is ${sum} bytes compressed, of ${FIRST_LOAD_BYTES_MAX} at the most`);
if (sum > FIRST_LOAD_BYTES_MAX) {
  process.exit(1);
}
