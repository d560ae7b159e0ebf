// A dashboard's JSON against the schema that Grafana publishes of it: the types of its package @grafana/schema, as a JSON schema.
//
//     node check.mjs FILE
//
// The dashboard as a whole, and of each panel its kind's own options. Prints what is wrong; exit codes: 0 nothing, 1 something.

import { readFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import Ajv from "ajv";
import { createGenerator } from "ts-json-schema-generator";

const here = dirname(fileURLToPath(import.meta.url));
const types = join(here, "node_modules/@grafana/schema/dist/types/raw");
const ajv = new Ajv({ allErrors: true, strict: false });

function checkerOf(file, type) {
  const path = join(types, file, "x/types.gen.d.ts");
  return ajv.compile(createGenerator({ path, type, skipTypeCheck: true }).createSchema(type));
}

const faults = [];
function check(what, checker, value) {
  if (!checker(value)) {
    faults.push(...checker.errors.map((it) => `${what}${it.instancePath}: ${it.message} ${JSON.stringify(it.params)}`));
  }
}

const dashboard = JSON.parse(readFileSync(process.argv[2], "utf8"));
check("dashboard", checkerOf("dashboard", "Dashboard"), dashboard);
const kinds = new Map();
for (const panel of dashboard.panels) {
  if (!kinds.has(panel.type)) {
    const file = `composable/${panel.type}/panelcfg`;
    // A stat has no fields of its own.
    const ofFields = panel.type === "stat" ? null : checkerOf(file, "FieldConfig");
    kinds.set(panel.type, { ofOptions: checkerOf(file, "Options"), ofFields });
  }
  const { ofOptions, ofFields } = kinds.get(panel.type);
  check(`${panel.title}: options`, ofOptions, panel.options);
  const custom = panel.fieldConfig.defaults.custom;
  if (custom !== undefined && ofFields) {
    check(`${panel.title}: fieldConfig.defaults.custom`, ofFields, custom);
  }
}
for (const fault of faults) {
  console.error(fault);
}
process.exit(faults.length ? 1 : 0);
