# Datature's published example, word for word.
curl --request "POST" \
     --url "https://asia.inference.datature.io/aa351718-744e-4997-b051-346c3274bcbd/predict" \
     --header 'Authorization: Bearer YOUR_SECRET_KEY' \
     --header 'Content-Type: application/json; charset=utf-8' \
     --data '{ "data": "https://YOUR_IMAGE.jpg", "image_type": "url" }'
