"""Vision models built and exported by their own projects, for tests/test_built_zoo.py.

    python tests/build_zoo.py FOLDER [tf-models-official | keras-hub | keras | ...]

builds the models of those packages that are installed, with random weights and without a download,
and writes of each `FOLDER/<name>/1`, a SavedModel as the project's documentation exports it,
`picture.png`, and `truth.json`: package, version, the call that exported it, what the project's own
post-processing finds in the picture, and what a deployment's config has to say. docs/pictures.md
says which versions go together.
"""

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
NAMES = ["cat", "dog", "emu", "fox"]


class Built(NamedTuple):
    """An exported model: the call that did it, its picture, and what its project finds there.

    `truth` has `boxes` [N, 4] (ymin, xmin, ymax, xmax in 0..1), `scores` [N] and `classes` [N] (from
    1), or those two alone for a classifier, or `map` [H, W], the class of each pixel, 0 nothing.
    """

    name: str
    call: str
    picture: np.ndarray
    config: dict[str, Any]
    family: str = ""
    truth: dict[str, Any] = {}
    refused: str = ""


def draw(height: int, width: int) -> np.ndarray:
    """A picture, uint8 [H, W, 3]: a sky, a box and a disc."""
    y, x = np.mgrid[:height, :width] / [[[height]], [[width]]]
    picture = np.stack([80 + 100 * y, 120 + 60 * x, 220 - 90 * y], 2)
    picture[(abs(x - 0.3) < 0.15) & (abs(y - 0.6) < 0.25)] = 200, 40, 30
    picture[(x - 0.7) ** 2 + (y - 0.4) ** 2 < 0.04] = 30, 200, 60
    return picture.astype(np.uint8)


def stir(variables: Any, scale: float) -> None:
    """Give the last layers of a model weights that tell one place of a picture from another."""
    random = np.random.default_rng(5)
    for variable in variables:
        variable.assign(random.normal(0, scale, tuple(variable.shape)).astype(np.float32))


def blur(kernels: Any) -> None:
    """Let convolutions [h, w, C, D] add up what is around, so that random masks are of few pieces."""
    for kernel in kernels:
        kernel.assign(np.broadcast_to(kernel.numpy().mean((0, 1)), tuple(kernel.shape)))


SIZE, PICTURE = [128, 128], draw(96, 160)

# --- tf-models-official ---------------------------------------------------------------------------

KINDS = ("image_tensor", "image_bytes", "tf_example")


def export_garden(folder: Path, name: str, kind: str, params: Any, module: Any) -> tuple[str, dict]:
    """Export a module for a kind of input; the call, and what the module answers for the picture."""
    import tensorflow as tf
    from official.vision.serving import export_saved_model_lib

    export_saved_model_lib.export_inference_graph(
        kind, 1, SIZE, params, None, str(folder / name / "1"), export_module=module
    )
    encoded = tf.io.encode_png(PICTURE).numpy()
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded]))
    features = tf.train.Features(feature={"image/encoded": feature})
    example = tf.train.Example(features=features).SerializeToString()
    given = {"image_tensor": PICTURE[None], "image_bytes": [encoded], "tf_example": [example]}[kind]
    answer = list(module.get_inference_signatures({kind: "x"}).values())[0](
        inputs=tf.constant(given)
    )
    found = {key: value.numpy()[0] for key, value in answer.items()}
    return f"export_saved_model_lib.export_inference_graph({kind!r}, ...)", found


def settle_norms(module: Any, images: Any) -> None:
    """Let batch norms see the picture, so that random weights tell its places apart."""
    for _ in range(8):
        features = module.model.backbone(images, training=True)
        if module.model.decoder:
            module.model.decoder(features, training=True)


def small(params: Any, classes: int) -> Any:
    params.task.model.backbone.resnet.model_id = 18
    params.task.model.num_classes = classes
    params.task.model.norm_activation.norm_momentum = 0.1
    return params


def small_detector(params: Any) -> Any:
    params.task.model.max_level = 6
    params.task.model.detection_generator.pre_nms_score_threshold = 0.02
    params.task.model.detection_generator.max_num_detections = 10
    return small(params, 5)


def garden_detectors(folder: Path) -> Iterator[Built]:
    """RetinaNet of three inputs, in 0..1 and with raw outputs; Faster and Mask R-CNN."""
    from official.vision import configs

    retinanet = configs.retinanet.retinanet_resnetfpn_coco
    for name, make, kinds in (
        ("retinanet", retinanet, KINDS),
        ("faster_rcnn", configs.maskrcnn.fasterrcnn_resnetfpn_coco, KINDS[:1]),
        ("mask_rcnn", configs.maskrcnn.maskrcnn_resnetfpn_coco, KINDS[:2]),
    ):
        for kind in kinds:
            yield garden_detector(folder, name, kind, small_detector(make()))
    params = small_detector(retinanet())
    params.task.export_config.output_normalized_coordinates = True
    params.task.export_config.cast_num_detections_to_float = True
    params.task.export_config.cast_detection_classes_to_float = True
    yield garden_detector(folder, "retinanet_unit", KINDS[0], params)
    params = small_detector(retinanet())
    params.task.model.detection_generator.apply_nms = False
    yield garden_detector(folder, "retinanet_raw", KINDS[0], params)


def garden_detector(folder: Path, name: str, kind: str, params: Any) -> Built:
    import tensorflow as tf
    from official.vision.ops import mask_ops
    from official.vision.serving import detection

    tf.random.set_seed(1)
    module = detection.DetectionModule(
        params=params, batch_size=1, input_image_size=SIZE, input_type=kind
    )
    module.serve(tf.constant(PICTURE[None]))
    settle_norms(module, module.preprocess(tf.constant(PICTURE[None]))[0])
    stir([v for v in module.model.trainable_variables if "scores/kernel" in v.name], 1)
    name = f"garden_{name}_{kind}"
    blur([v for v in module.model.trainable_variables if "mask" in v.name and len(v.shape) == 4])
    call, raw = export_garden(folder, name, kind, params, module)
    config = {"label_map": NAMES}
    if "detection_boxes" not in raw:
        return Built(name, call, PICTURE, config, refused="raw outputs of a detector")
    count, boxes = int(raw["num_detections"]), raw["detection_boxes"]
    family = "detection_api" if "retinanet_unit" in name else "model_garden"
    if family == "model_garden":  # official/vision/tasks: the evaluators divide by the scale
        original, _, scale, _ = raw["image_info"]
        boxes = boxes / np.tile(scale, 2) / np.tile(original, 2)
    truth = {"boxes": boxes[:count], "scores": raw["detection_scores"][:count]}
    truth["classes"] = raw["detection_classes"][:count]
    if "detection_masks" in raw:
        height, width = PICTURE.shape[:2]
        pixels = truth["boxes"] * [height, width, height, width]  # may reach into the padding
        corner, size = pixels[:, 1::-1], (pixels[:, 2:] - pixels[:, :2])[:, ::-1]
        xywh = np.concatenate([corner, size], 1)
        masks = raw["detection_masks"][:count]
        truth["masks"] = mask_ops.paste_instance_masks(masks, xywh, height, width)
    return Built(name, call, PICTURE, config, family, truth)


def garden_yolo(folder: Path) -> Iterator[Built]:
    """YOLOv7: the names of the Object Detection API, but classes from 0."""
    import tensorflow as tf
    from official.projects.yolo.common import registry_imports  # noqa: F401
    from official.projects.yolo.configs import yolov7
    from official.projects.yolo.serving import export_module_factory

    tf.random.set_seed(1)
    params = yolov7.coco_yolov7_tiny()
    params.task.model.num_classes = 4
    params.task.model.detection_generator.max_boxes = 10
    module = export_module_factory.get_export_module(params, "image_tensor", 1, SIZE)
    for _ in range(200):
        images, _ = module.preprocessor(inputs=tf.constant(PICTURE[None]))
        module.model(images, training=True)
    heads = [v for v in module.model.trainable_variables if "head" in v.name and len(v.shape) > 1]
    stir(heads, 0.5)
    call, raw = export_garden(folder, "garden_yolov7", "image_tensor", params, module)
    count = int(raw["num_detections"])
    truth = {"boxes": raw["detection_boxes"][:count], "scores": raw["detection_scores"][:count]}
    truth["classes"] = raw["detection_classes"][:count] + 1
    config = {"label_map": NAMES}
    yield Built(
        "garden_yolov7", call, PICTURE, {**config, "classes_from": 0}, "detection_api", truth
    )
    export_garden(folder, "garden_yolov7_unsaid", "image_tensor", params, module)
    yield Built("garden_yolov7_unsaid", call, PICTURE, config, refused='"classes_from": 0')


def garden_segmenters(folder: Path) -> Iterator[Built]:
    """DeepLab and FPN, with planes of the input's size and of the picture's."""
    from official.vision import configs

    for name, kind, keeps, rescales in (
        ("deeplab", "image_tensor", True, False),
        ("deeplab_stretched", "image_tensor", False, False),
        ("deeplab_rescaled", "image_tensor", True, True),
        ("deeplab_bytes", "image_bytes", True, False),
    ):
        params = small(configs.semantic_segmentation.mnv2_deeplabv3_pascal(), 5)
        params.task.train_data.preserve_aspect_ratio = keeps
        params.task.export_config.rescale_output = rescales
        yield from garden_segmenter(folder, f"garden_{name}", kind, params)


def garden_segmenter(folder: Path, name: str, kind: str, params: Any) -> Iterator[Built]:
    """With the activation that the graph lacks, and without."""
    import tensorflow as tf
    from official.vision.serving import semantic_segmentation

    tf.random.set_seed(1)
    module = semantic_segmentation.SegmentationModule(
        params=params, batch_size=1, input_image_size=SIZE, input_type=kind
    )
    settle_norms(module, tf.image.resize(PICTURE[None].astype(np.float32) / 64 - 2, SIZE))
    module.serve(tf.constant(PICTURE[None]))
    stir([v for v in module.model.trainable_variables if is_logits(v)], 0.5)
    call, raw = export_garden(folder, name, kind, params, module)
    planes, (original, _, scale, _) = raw["logits"], raw["image_info"]
    height, width = original.astype(int)
    if planes.shape[:2] != (height, width):  # what is evaluated is the grid without the padding
        tall, wide = np.rint(original * scale).astype(int)
        planes = planes[:tall, :wide]
    config = {"label_map": NAMES, "activation": "softmax"}
    yield Built(name, call, PICTURE, config, "garden_segmentation", {"map": planes.argmax(2)})
    if name == "garden_deeplab":
        export_garden(folder, "garden_deeplab_unsaid", kind, params, module)
        config = {"label_map": NAMES}
        yield Built("garden_deeplab_unsaid", call, PICTURE, config, refused='"activation"')


def is_logits(variable: Any) -> bool:
    return "segmentation_head" in variable.name and variable.shape[-1] == 5


def garden_classifiers(folder: Path) -> Iterator[Built]:
    import tensorflow as tf
    from official.vision import configs
    from official.vision.serving import image_classification

    for kind in KINDS:
        for is_multilabel in (False, True)[: 2 if kind == "image_tensor" else 1]:
            tf.random.set_seed(1)
            params = small(configs.image_classification.image_classification_imagenet(), 4)
            params.task.train_data.is_multilabel = is_multilabel
            module = image_classification.ClassificationModule(
                params=params, batch_size=1, input_image_size=SIZE, input_type=kind
            )
            name = f"garden_{'labels' if is_multilabel else 'classes'}_{kind}"
            call, raw = export_garden(folder, name, kind, params, module)
            truth = {"scores": raw["probs"], "classes": np.arange(1, 5)}
            yield Built(name, call, PICTURE, {"label_map": NAMES}, "classifier", truth)


# --- Keras: keras.applications, KerasHub, KerasCV -------------------------------------------------


def classified(scores: Any) -> dict[str, Any]:
    scores = np.asarray(scores, np.float64).ravel()
    return {"scores": scores, "classes": np.arange(1, len(scores) + 1)}


def applications(folder: Path) -> Iterator[Built]:
    """Of each the picture that its `preprocess_input` makes, and `predict`."""
    import keras

    at, size = keras.applications, (96, 96)
    made = {
        "mobilenet_v2": (at.MobileNetV2, at.mobilenet_v2, {"alpha": 0.35}, "tf"),
        "efficientnet_b0": (at.EfficientNetB0, at.efficientnet, {}, None),
        "resnet50": (at.ResNet50, at.resnet50, {}, "caffe"),
        "densenet121": (at.DenseNet121, at.densenet, {}, "torch"),
    }
    for name, (make, module, options, preprocess) in made.items():
        keras.utils.set_random_seed(1)
        model = make(weights=None, classes=4, input_shape=(*size, 3), **options)
        yield from application(folder, name, model, module, preprocess)
        if name in ("mobilenet_v2", "resnet50"):
            model = make(
                weights=None,
                classes=4,
                input_shape=(*size, 3),
                classifier_activation=None,
                **options,
            )
            yield from application(folder, name + "_logits", model, module, preprocess)


def application(
    folder: Path, name: str, model: Any, module: Any, preprocess: str | None
) -> Iterator[Built]:
    """By `model.export` and by `tf.saved_model.save`; logits with the activation and without."""
    import tensorflow as tf

    picture = draw(96, 96)
    raw = model.predict(module.preprocess_input(picture[None].astype(np.float32)), verbose=0)
    config: dict[str, Any] = {"label_map": NAMES}
    if preprocess:
        config["preprocess"] = preprocess
    if name.endswith("_logits"):
        model.export(folder / f"keras_{name}_unsaid" / "1", verbose=False)
        refused = "neither softmax nor sigmoid"
        yield Built(f"keras_{name}_unsaid", "model.export", picture, config, refused=refused)
        config, raw = {**config, "activation": "softmax"}, tf.nn.softmax(raw).numpy()
    model.export(folder / f"keras_{name}" / "1", verbose=False)
    yield Built(f"keras_{name}", "model.export", picture, config, "classifier", classified(raw))
    tf.saved_model.save(model, str(folder / f"keras_{name}_saved" / "1"))
    call = "tf.saved_model.save"
    yield Built(f"keras_{name}_saved", call, picture, config, "classifier", classified(raw))


def hub_encoder(side: int | None) -> Any:
    import keras_hub

    return keras_hub.models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[7],
        stackwise_num_filters=[64, 64, 64, 64],
        stackwise_num_blocks=[1, 1, 1, 1],
        stackwise_num_strides=[1, 2, 2, 2],
        block_type="basic_block",
        image_shape=(side, side, 3),
    )


def hub_classifiers(folder: Path) -> Iterator[Built]:
    import keras
    import keras_hub

    picture = draw(128, 128)
    for activation in ("softmax", "sigmoid", None):
        keras.utils.set_random_seed(1)
        model = keras_hub.models.ResNetImageClassifier(
            backbone=hub_encoder(128), num_classes=4, activation=activation
        )
        raw = model.predict(picture[None].astype(np.float32) / 255, verbose=0)
        config = {"label_map": NAMES, "scale": 1 / 255}
        name = f"hub_classifier_{activation or 'logits'}"
        model.export(folder / name / "1", verbose=False)
        if activation:
            yield Built(name, "model.export", picture, config, "classifier", classified(raw))
        else:
            refused = "neither softmax nor sigmoid"
            yield Built(name, "model.export", picture, config, refused=refused)


def hub_segmenters(folder: Path) -> Iterator[Built]:
    """SegFormer, whose output is logits, saved as `predict` calls it: its `export` leaves batch norms
    in training, as Keras 3.15 does with all that comes after a Resizing. DeepLabV3ImageSegmenter
    cannot be exported, as of KerasHub 0.32: it stops at its own UpSampling2D.
    """
    import keras
    import keras_hub

    models, picture = keras_hub.models, draw(128, 128)
    keras.utils.set_random_seed(1)
    encoder = models.MiTBackbone(
        layerwise_depths=[1, 1, 1, 1],
        image_shape=(128, 128, 3),
        hidden_dims=[16, 32, 40, 64],
        num_layers=4,
        layerwise_num_heads=[1, 2, 5, 8],
        layerwise_sr_ratios=[8, 4, 2, 1],
        max_drop_path_rate=0.1,
        layerwise_patch_sizes=[7, 3, 3, 3],
        layerwise_strides=[4, 2, 2, 2],
    )
    segformer = models.SegFormerImageSegmenter(
        backbone=models.SegFormerBackbone(image_encoder=encoder, projection_filters=32),
        num_classes=5,
    )
    images = picture[None].astype(np.float32)
    for _ in range(100):
        segformer(images, training=True)
    stir([v for v in segformer.trainable_variables if is_wide(v, 5)], 0.5)
    raw = segformer.predict(images, verbose=0)
    save_function(folder / "hub_segformer" / "1", segformer, lambda x: segformer(x, training=False))
    config = {"label_map": NAMES, "activation": "softmax"}
    truth = {"map": np.asarray(raw)[0].argmax(2)}
    call = "tf.saved_model.save of model(images, training=False)"
    yield Built("hub_segformer", call, picture, config, "segmentation", truth)


def save_function(folder: Path, model: Any, function: Callable[[Any], Any]) -> None:
    """A SavedModel of a function of one picture, float32 [1, 128, 128, 3]."""
    import tensorflow as tf

    module, spec = tf.Module(), tf.TensorSpec([1, 128, 128, 3], tf.float32, "images")
    module.model, module.serve = model, tf.function(function, input_signature=[spec])
    tf.saved_model.save(module, str(folder), {"serving_default": module.serve})


def hub_detectors(folder: Path) -> Iterator[Built]:
    """RetinaNet as `export` leaves it, without its decoding, and with it."""
    import keras
    import keras_hub

    for form in ("yxyx", "xywh"):
        keras.utils.set_random_seed(1)
        backbone = keras_hub.models.RetinaNetBackbone(
            image_encoder=hub_encoder(128), min_level=3, max_level=6, use_p5=False
        )
        model = keras_hub.models.RetinaNetObjectDetector(
            backbone=backbone, num_classes=4, bounding_box_format=form
        )
        heads = model(draw(128, 128)[np.newaxis].astype(np.float32), training=False)
        for variable in model.classification_head.trainable_variables:
            if is_wide(variable, 36):  # 9 boxes a place, of 4 classes
                variable.assign(variable / np.std(heads["cls_logits"]))
        for variable in model.box_head.trainable_variables:  # near their anchors
            if variable.shape[-1] == 36:
                variable.assign(variable * 0)
            if variable.shape == (36,):
                stir([variable], 0.2)
        yield from keras_detector(folder, f"hub_retinanet_{form}", model, form, "labels")


def is_wide(variable: Any, columns: int) -> bool:
    return len(variable.shape) == 4 and variable.shape[-1] == columns


def cv_detectors(folder: Path) -> Iterator[Built]:
    """KerasCV's YOLOV8Detector as `export` leaves it, and with its decoding."""
    import keras
    import keras_cv

    keras.utils.set_random_seed(1)
    backbone = keras_cv.models.YOLOV8Backbone(
        include_rescaling=True,
        stackwise_channels=[16, 32, 64, 64],
        stackwise_depth=[1, 1, 1, 1],
        input_shape=(128, 128, 3),
    )
    model = keras_cv.models.YOLOV8Detector(
        num_classes=4, bounding_box_format="xywh", backbone=backbone, fpn_depth=1
    )
    model.prediction_decoder = keras_cv.layers.NonMaxSuppression(
        "xywh", from_logits=False, confidence_threshold=0.001, iou_threshold=0.5
    )
    yield from keras_detector(folder, "cv_yolov8", model, "xywh", "classes")


def keras_detector(folder: Path, name: str, model: Any, form: str, classes: str) -> Iterator[Built]:
    """`model.export` writes the heads; what `predict` adds is `decode_predictions`."""
    picture = draw(128, 128)
    config: dict[str, Any] = {"label_map": NAMES}
    model.export(folder / f"{name}_heads" / "1", verbose=False)
    refused = "decode_predictions"
    yield Built(f"{name}_heads", "model.export", picture, config, refused=refused)
    raw = model.predict(picture[None].astype(np.float32), verbose=0)
    count = int(np.asarray(raw["num_detections"]).ravel()[0])
    boxes = np.asarray(raw["boxes"])[0][:count]
    boxes = boxes[:, [1, 0, 3, 2]] if form == "xywh" else boxes
    boxes[:, 2:] += boxes[:, :2] if form == "xywh" else 0
    truth = {"boxes": boxes / 128, "scores": np.asarray(raw["confidence"])[0][:count]}
    truth["classes"] = np.asarray(raw[classes])[0][:count] + 1

    decode = lambda images: model.decode_predictions(model(images, training=False), images)  # noqa: E731
    save_function(folder / name / "1", model, decode)
    config["boxes"] = {"format": form, "scale": "input"}
    call = "tf.saved_model.save of decode_predictions"
    yield Built(name, call, picture, config, "keras_detector", truth)


# --- Ultralytics ----------------------------------------------------------------------------------


def ultralytics_models(folder: Path) -> Iterator[Built]:
    """`YOLO(...).export(format="saved_model")` of heads without training, and with suppression."""
    os.environ.update(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false")
    import shutil

    import torch
    from ultralytics import YOLO

    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    # onnx2tf calibrates nothing here, but wants the file, which it would download
    sample = np.zeros((20, 128, 128, 3), np.float32)
    np.save("calibration_image_sample_data_20x128x128x3_float32.npy", sample)
    for name, options in (
        ("yolov8n", {}), ("yolo11n", {}), ("yolov8n-seg", {}), ("yolov8n-cls", {}), ("yolo26n", {}),
        ("yolov8n", {"nms": True}), ("yolov8n-pose", {}), ("yolov8n-obb", {}),
    ):  # fmt: skip
        torch.manual_seed(1)
        model = YOLO(f"{name}.yaml")
        liven(model.model, torch)
        saved = model.export(format="saved_model", imgsz=128, **options)
        for built in ultralytics_model(name, model, options, saved):
            shutil.copytree(saved, folder / built.name / "1", dirs_exist_ok=True)
            yield built


def liven(model: Any, torch: Any) -> None:
    """Give batch norms what they see, and scores that differ."""
    picture = torch.tensor(draw(128, 128)).permute(2, 0, 1)[None].float() / 255
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.3
    with torch.no_grad():
        for _ in range(10):
            model(picture)
        head = model.model[-1]
        for layers in [getattr(head, name, None) for name in ("cv3", "one2one_cv3")]:
            for layer in layers or ():
                layer[-1].weight.normal_(0, 1)
                layer[-1].bias.fill_(-1)
        for kernel in head.proto.parameters() if hasattr(head, "proto") else ():
            if kernel.ndim == 4:  # as `blur` does
                kernel.copy_(kernel.mean((2, 3), keepdim=True).expand_as(kernel))
    model.eval()


def ultralytics_model(name: str, model: Any, options: dict, saved: str) -> Iterator[Built]:
    """What `predict` of the exported model finds, by its own post-processing."""
    from ultralytics import YOLO

    picture = draw(128, 128)
    call = f"YOLO.export(format='saved_model', {options})"
    config: dict[str, Any] = {"scale": 1 / 255}
    own = f"ultralytics_{name}{'_nms' if options else ''}"
    (found,) = YOLO(saved).predict(picture[..., ::-1], imgsz=128, verbose=False, max_det=300)
    if found.probs is not None:
        yield Built(own, call, picture, config, "classifier", numbered(found))
        return
    if name.endswith(("-pose", "-obb")):
        yield Built(own, call, picture, config, refused="YOLO's pose and rotated-box models")
        return
    if options:
        yield Built(f"{own}_unsaid", call, picture, config, refused='"yolo_nms"')
        config["family"] = "yolo_nms"
    truth = {
        "boxes": found.boxes.xyxyn.numpy()[:, [1, 0, 3, 2]],
        "scores": found.boxes.conf.numpy(),
        "classes": found.boxes.cls.numpy().astype(int),  # metadata.yaml names them from 0 on
    }
    if found.masks is not None:
        truth["masks"] = found.masks.data.numpy() > 0
    if "-seg" in name:  # 32 planes of 32 x 32
        yield Built(f"{own}_unsaid", call, picture, config, refused='"planes": "first" or "last"')
        config = {**config, "planes": "last"}
    family = "yolo_nms" if options else "yolo_segmentation" if "-seg" in name else "yolo"
    yield Built(own, call, picture, config, family, truth)


def numbered(found: Any) -> dict[str, Any]:
    """A classifier's confidences, by the ids of metadata.yaml, from 0 on."""
    truth = classified(found.probs.data)
    return {**truth, "classes": truth["classes"] - 1}


# --- transformers ---------------------------------------------------------------------------------


def transformers_models(folder: Path) -> Iterator[Built]:
    """ViT: pictures [N, 3, H, W], logits. transformers 5 has no TensorFlow any more."""
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import shutil

    import tensorflow as tf
    from transformers import TFViTForImageClassification, ViTConfig

    tf.random.set_seed(1)
    model = TFViTForImageClassification(
        ViTConfig(
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            image_size=64,
            num_labels=4,
        )
    )
    picture = draw(64, 64)
    pixels = (picture.astype(np.float32) / 255 - 0.5) / 0.5  # ViTImageProcessor
    raw = model(pixels.transpose(2, 0, 1)[None]).logits
    call = "save_pretrained(..., saved_model=True)"
    config = {"label_map": NAMES, "preprocess": "tf"}
    for name in ("transformers_vit", "transformers_vit_unsaid"):
        model.save_pretrained(folder / "transformers", saved_model=True)
        shutil.copytree(
            folder / "transformers/saved_model/1", folder / name / "1", dirs_exist_ok=True
        )
    shutil.rmtree(folder / "transformers")
    truth = classified(tf.nn.softmax(raw))
    said = {**config, "activation": "softmax"}
    yield Built("transformers_vit", call, picture, said, "classifier", truth)
    refused = "neither softmax nor sigmoid"
    yield Built("transformers_vit_unsaid", call, picture, config, refused=refused)


BUILDERS: dict[str, list[Callable[[Path], Iterator[Built]]]] = {
    "tf-models-official": [garden_classifiers, garden_segmenters, garden_yolo, garden_detectors],
    "keras": [applications],
    "keras-hub": [hub_classifiers, hub_segmenters, hub_detectors],
    "keras-cv": [cv_detectors],
    "ultralytics": [ultralytics_models],
    "transformers": [transformers_models],
}


def write(folder: Path, package: str, built: Built) -> None:
    """Write what a model's test needs beside the model."""
    from PIL import Image

    Image.fromarray(built.picture).save(folder / built.name / "picture.png")
    truth = {key: np.asarray(value).tolist() for key, value in built.truth.items()}
    about = {
        "package": package, "version": importlib.metadata.version(package), "call": built.call,
        "config": built.config, "family": built.family, "refused": built.refused, "truth": truth,
    }  # fmt: skip
    (folder / built.name / "truth.json").write_text(json.dumps(about))


def main(folder: Path, packages: list[str]) -> None:
    for package in packages or BUILDERS:
        try:
            importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package}: not installed")
            continue
        for build in BUILDERS[package]:
            for built in build(folder):
                write(folder, package, built)
                print(f"{package}: {built.name}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
