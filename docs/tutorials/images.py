# %% [markdown]
# # Images: a small backbone from a folder
#
# A small network learns from three teachers on a folder of images without labels: EfficientNet-Lite0, gradients and
# colours. Then it goes on as a network of timm.
#
# This page ran as it stands, offline, on one core; the last cell says how long it took. First:
# `pip install 'quorum-distill[offline]' pandas`

# %%
import logging
import time
from pathlib import Path

import numpy
import skimage.data
import timm
from matplotlib import pyplot
from PIL import Image
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import distill
from cache_tools import Pixels
from distill.students.image import ImageStudent

# %% [markdown]
# ## The images
#
# Any folder of jpg, png or webp files does. Here it holds squares that are cut from eight pictures of scikit-image. The
# folder's name tells the picture; the student never sees it.

# %%
names = ["astronaut", "chelsea", "coffee", "rocket", "brick", "grass", "gravel", "coins"]
generator = numpy.random.default_rng(0)
for name in names:
    picture = Image.fromarray(getattr(skimage.data, name)()).convert("RGB")
    for number in range(30):
        left, top = generator.integers(0, numpy.array(picture.size) - 96)
        path = Path("squares", name, f"{number}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.crop((left, top, left + 96, top + 96)).save(path)
len(list(Path("squares").rglob("*.png")))

# %% [markdown]
# ## Fit a student
#
# The student is timm's `resnet18` with random weights; it reads squares of 64 pixels. A few dozen steps do not make a
# good backbone: use tens of thousands of images, and pretrained weights where you have them.

# %%
logging.basicConfig(level="ERROR")  # leave this line out to see every step
student = distill.fit(
    "squares",
    ImageStudent("resnet18", pretrained=False),
    ["efficientnet", "hog", "colour"],
    inputs={"pixels": Pixels(64)},
    epochs=4,
    out="runs/images",
    options={"data.batch_size": 24, "data.num_workers": 0, "trainer.accelerator": "cpu"},
)
student

# %% [markdown]
# ## Look at it
#
# On the left a square, beside it its four nearest neighbours by the student's embedding.

# %%
paths = sorted(Path("squares").rglob("*.png"))
vectors = student.embed(paths, output="numpy")
shown = [15 + 60 * row for row in range(4)]
_, nearest = NearestNeighbors(n_neighbors=5, metric="cosine").fit(vectors).kneighbors(vectors[shown])
figure, axes = pyplot.subplots(4, 5, figsize=(5, 4))
for axis, row in zip(axes.flat, nearest.flat, strict=True):
    axis.imshow(Image.open(paths[row]))
    axis.set_axis_off()

# %% [markdown]
# Which picture does a square come from? Squares of one picture overlap, so this is an easy question, and
# no measure of a good backbone.

# %%
labels = [path.parent.name for path in paths]
score = cross_val_score(KNeighborsClassifier(5, metric="cosine"), vectors, labels, cv=5).mean()
print(f"accuracy of nearest neighbours: {score:.2f}")

# %% [markdown]
# ## Go on in timm
#
# `backbone` is the network of timm itself. Save its weights, fine-tune it, or give it to a detector.

# %%
network = timm.create_model("resnet18", num_classes=0)
network.load_state_dict(student.backbone.state_dict())

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this process")
