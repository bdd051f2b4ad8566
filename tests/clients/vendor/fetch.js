// Datature's published example, word for word.
const options = {
  method: "POST",
  headers: {
    Authorization: "Bearer YOUR_SECRET_HASH",
    "Content-Type": "application/json; charset=utf-8",
  },
  body: JSON.stringify({
    data: "https://YOUR_IMAGE.jpg",
    image_type: "url",
  }),
};

fetch("https://<REGION>.inference.datature.io/75965b90-d29f-4981-8935-59ff53e1d35d/predict", options)
  .then((response) => response.json())
  .then((response) => console.log(response))
  .catch((err) => console.error(err));
