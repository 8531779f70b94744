# %% [markdown]
# # Texts: a search engine that needs no network
#
# A transformer gives good embeddings of sentences, but it is slow. Here a **static** student, a table with one vector
# per token, learns from all-MiniLM-L6-v2. It is about a hundred times faster. Then we search with it, and write it as
# ONNX.
#
# This page ran as it stands, offline, on one core; the last cell says how long it took. First:
# `pip install 'quorum-distill[offline]' pandas`

# %%
import inspect
import logging
import re
import time
from pathlib import Path

import numpy
import pandas
import scipy.stats
import torch
from onnxruntime import InferenceSession
from sklearn.neighbors import NearestNeighbors
from transformers import AutoTokenizer

import cache_tools
import distill

# %% [markdown]
# ## The texts
#
# Any list of strings does. Here it is 1,500 sentences of the help pages of libraries that you have: numpy, pandas,
# SciPy and torch.

# %%
libraries = numpy, pandas, scipy.stats, torch.nn.functional
pages = [" ".join((inspect.getdoc(getattr(of, name)) or "").split()) for of in libraries for name in dir(of)]
sentences = dict.fromkeys(sentence for page in pages for sentence in re.split(r"(?<=[.]) (?=[A-Z])", page))
texts = [sentence for sentence in sentences if 30 < len(sentence) < 160 and ">>>" not in sentence][:1500]
len(texts), texts[:2]

# %% [markdown]
# ## Fit a student
#
# The teacher embeds each text once, which takes most of the time; what it says is kept in the folder `cache`.

# %%
logging.basicConfig(level="ERROR")  # leave this line out to see every step
student = distill.fit(texts, "text-tiny", ["minilm"], epochs=10, out="runs/texts")
student

# %% [markdown]
# ## Search
#
# Any index of vectors does, such as FAISS or a database; here it is scikit-learn's.

# %%
vectors = student.embed(texts, output="numpy")
index = NearestNeighbors(metric="cosine").fit(vectors)


def search(query, count=3):
    _, rows = index.kneighbors(student.embed([query], output="numpy"), count)
    return [texts[row] for row in rows[0]]


search("put the numbers of an array in order")

# %% [markdown]
# ## How near is it to its teacher?
#
# For 200 of the texts: how many of the teacher's ten nearest texts does the student find among its own ten? The cache
# holds the teacher's vectors, so nothing is computed again.

# %%
(corpus,) = Path("cache").glob("text-*")
teacher = cache_tools.open(corpus / "teachers" / "minilm").rows(range(len(texts))).float().numpy()


def ten_nearest(rows):
    return NearestNeighbors(n_neighbors=11, metric="cosine").fit(rows).kneighbors(rows[:200])[1][:, 1:]


pairs = zip(ten_nearest(teacher), ten_nearest(vectors), strict=True)
recall = numpy.mean([len(set(wanted) & set(found)) / 10 for wanted, found in pairs])
print(f"recall@10 of the teacher's neighbours: {recall:.2f}")

# %% [markdown]
# ## ONNX
#
# `model.onnx` takes token ids and a mask; `model-int8.onnx` is a quarter of its size. The tokenizer lies beside them.

# %%
student.export("search", onnx=True)
tokenizer = AutoTokenizer.from_pretrained("search/inputs/tokens")
tokens = tokenizer(["sort an array"], return_tensors="np")
given = {"ids": tokens["input_ids"], "mask": tokens["attention_mask"]}
(found,) = InferenceSession("search/model.onnx").run(None, given)
found.shape

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this process")
