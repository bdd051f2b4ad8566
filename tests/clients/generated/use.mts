// What a client of openapi-fetch with openapi-typescript's types of the demo's /openapi.json answers.
import createClient from "openapi-fetch";
import type { paths } from "./schema.js";

const [address = "", encoded = ""] = process.argv.slice(2);
const asked = (key: string) =>
  createClient<paths, "application/json">({
    baseUrl: address,
    headers: { Authorization: `Bearer ${key}` },
  });
const client = asked("secret");
const base64 = { image_type: "base64" as const, data: encoded };

const status = await client.GET("/v1/models/half_plus_two");
const predict = await client.POST("/v1/models/half_plus_two:predict", { body: { inputs: [1, 5] } });
const classify = await client.POST("/v1/models/{model}:classify", {
  params: { path: { model: "nothing" } },
  body: { examples: [{ x: 1 }] },
});
const classes = await client.GET("/shapes/classes");
const seen = await client.POST("/shapes/predict", { body: base64 });
const bytes = await client.POST("/shapes/predict", {
  body: encoded,
  bodySerializer: (body) => Buffer.from(body as string, "base64"),
  headers: { "Content-Type": "application/octet-stream" },
  params: { query: { format: "coco" } },
});
const form = await client.POST("/shapes/predict", {
  body: { image: encoded },
  bodySerializer: () => {
    const fields = new FormData();
    fields.append("image", new Blob([Buffer.from(encoded, "base64")]), "picture.jpg");
    return fields;
  },
});
const refused = await asked("wrong").POST("/shapes/predict", { body: base64 });
const handler = await client.POST("/caption", { body: [1, "ü"] });
const reload = await client.POST("/v1/config/reload");

console.log(
  JSON.stringify({
    status: status.data,
    predict: predict.data,
    classify: classify.error,
    classes: classes.data,
    base64: seen.data,
    form: form.data,
    coco: bytes.data,
    refused: refused.error,
    handler: handler.data,
    reload: reload.response.status,
  }),
);
// The types know what the server answers.
const tag: string | undefined = seen.data?.predictions?.[0]?.tag?.name;
const state: string | undefined = status.data?.model_version_status[0]?.state;
console.error(tag, state);
