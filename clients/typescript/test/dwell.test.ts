import assert from "node:assert/strict";
import test from "node:test";

import { DwellMeter } from "../src/dwell.js";

test("a view is a stretch of at least the minimum, and at most the maximum", () => {
  const meter = new DwellMeter<string>(500, 60_000);
  meter.show("a", 100);
  meter.show("a", 400); // another threshold of the same stretch
  assert.equal(meter.hide("a", 1_100.4), 1_000);
  meter.show("a", 2_000);
  assert.equal(meter.hide("a", 2_499), null);
  meter.show("a", 3_000);
  assert.equal(meter.hide("a", 3_500), 500);
  meter.show("a", 4_000);
  assert.equal(meter.hide("a", 400_000), 60_000);
  assert.equal(meter.hide("a", 400_001), null, "it isn't visible any more");
  assert.equal(meter.hide("b", 400_001), null, "it never was");
});

test("a hidden page ends the stretches once, and what is still visible begins anew", () => {
  const meter = new DwellMeter<string>(500, 60_000);
  meter.show("a", 0);
  meter.show("b", 900);
  assert.deepEqual(meter.pause(1_000), [["a", 1_000]]);
  assert.deepEqual(meter.pause(2_000), [], "visibilitychange and pagehide both come");
  meter.show("c", 3_000); // seen by nobody yet
  assert.equal(meter.hide("b", 4_000), null);
  meter.resume(10_000);
  meter.resume(10_500);
  assert.equal(meter.hide("a", 10_700), 700);
  assert.equal(meter.hide("b", 10_700), null);
  assert.equal(meter.hide("c", 10_800), 800);
});
