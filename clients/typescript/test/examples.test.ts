import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

function linesOf(text: string): string[] {
  return text.split("\n").map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("import"));
}

test("the README's TypeScript is what the compiler has checked", () => {
  const checked = linesOf(readFileSync("test/examples.ts", "utf8")).join("\n");
  const blocks = Array.from(readFileSync("README.md", "utf8").matchAll(/```ts\n([^]*?)```/g), (found) => found[1]!);
  assert.equal(blocks.length, 2);
  for (const block of blocks) assert(checked.includes(linesOf(block).join("\n")), block);
});
