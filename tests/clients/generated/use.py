"""What a client that openapi-python-client has made of the demo's /openapi.json answers."""

import json
import sys
from io import BytesIO
from pathlib import Path

from api import AuthenticatedClient
from api.api.handlers import post_caption
from api.api.models import (
    post_v1_models_model_classify,
    predict_half_plus_two,
    status_of_half_plus_two,
)
from api.api.pictures import classes_of_shapes, predict_picture_by_shapes
from api.api.server import post_v1_config_reload
from api.models import (
    Picture,
    PictureImageType,
    PostV1ModelsModelClassifyBody,
    PredictHalfPlusTwoJsonBodyType0,
    PredictHalfPlusTwoOutputsItem,
    PredictPictureByShapesFilesBody,
    PredictPictureByShapesFormat,
)
from api.types import File

address, picture, encoded = sys.argv[1:]
client = AuthenticatedClient(address, "secret")
stranger = AuthenticatedClient(address, "wrong")
data = Path(picture).read_bytes()


def see(body, client=client, **options):
    answer = predict_picture_by_shapes.sync(client=client, body=body, **options)
    return answer.to_dict()


ones = PredictHalfPlusTwoJsonBodyType0(inputs=[1.0, 5.0])
examples = PostV1ModelsModelClassifyBody(examples=[{"x": 1.0}])
form = PredictPictureByShapesFilesBody(image=File(BytesIO(data), "picture.jpg"))
base64 = Picture(image_type=PictureImageType.BASE64, data=encoded)
drawn = predict_picture_by_shapes.sync_detailed(
    client=client, body=base64, format_=PredictPictureByShapesFormat.COCO
)
print(
    json.dumps(
        {
            "status": status_of_half_plus_two.sync(client=client).to_dict(),
            "predict": predict_half_plus_two.sync(client=client, body=ones).to_dict(),
            "outputs": list(
                predict_half_plus_two.sync(
                    client=client, body=ones, outputs=[PredictHalfPlusTwoOutputsItem.Y]
                ).to_dict()
            ),
            "classify": post_v1_models_model_classify.sync(
                "nothing", client=client, body=examples
            ).to_dict(),
            "classes": classes_of_shapes.sync(client=client).to_dict(),
            "base64": see(base64),
            "bytes": see(File(BytesIO(data), "picture.jpg")),
            "form": see(form),
            "coco": json.loads(drawn.content),
            "refused": see(base64, stranger),
            "handler": post_caption.sync(client=client, body=[1, "ü"]),
            "reload": post_v1_config_reload.sync_detailed(client=client).status_code,
        }
    )
)
