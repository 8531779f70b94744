# %% [markdown]
# # Molecules: one embedding for a chemist's tables
#
# You have a table of molecules with a measured property, and many molecules without labels. Here a small network, the
# **student**, learns from three **teachers** that need no download: RDKit's descriptors, Morgan counts and MACCS keys.
# Then its embedding is a step of a scikit-learn pipeline.
#
# This page ran as it stands, offline, on one core; the last cell says how long it took. First:
# `pip install 'quorum-distill[mol]' pandas`

# %%
import logging
import time

import pandas
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import cosine_similarity

import distill
from cache_tools import RdkitSamples
from distill.evaluation.tasks import Measured

# %% [markdown]
# ## The data
#
# 1,282 molecules with their solubility in water come with the package. Your own table needs a column `smiles`.

# %%
table = pandas.read_csv(Measured("solubility").path)
table.head(3)

# %% [markdown]
# ## Fit a student
#
# The corpus is 1,500 molecules that come with RDKit; it has no labels. `fit` runs each teacher once over it, keeps what
# they say in the folder `cache`, and trains the student `mol-tiny`. More molecules give a better student: 20,000 and
# more are usual.

# %%
logging.basicConfig(level="ERROR")  # leave this line out to see every step
teachers = ["descriptors", "morgan_counts", "maccs"]
student = distill.fit(RdkitSamples(limit=1500), "mol-tiny", teachers, epochs=4, out="runs/molecules")
student

# %% [markdown]
# ## Embed
#
# `embed` takes a list, a Series or the table itself, and gives a tensor, a numpy array or a data frame.

# %%
student.embed(table.head(3), output="pandas").round(2).iloc[:, :6]

# %% [markdown]
# ## A pipeline of scikit-learn
#
# The student is one step; cross-validation gives R2 on molecules that the model has not seen. `mol-small` is a student
# that comes with the package: it saw 27 times as many molecules.


# %%
def model(which):
    return make_pipeline(distill.StudentTransformer(which, device="cpu"), StandardScaler(), RidgeCV([1, 10, 100, 1000]))


scores = {
    name: cross_val_score(model(which), table["smiles"], table["log_solubility"], cv=3, scoring="r2").mean()
    for name, which in {"this student": student, "mol-small": "mol-small"}.items()
}
pandas.Series(scores, name="R2").round(3).to_frame()

# %%
predicted = cross_val_predict(model(student), table["smiles"], table["log_solubility"], cv=3)
axes = table.assign(predicted=predicted).plot.scatter("log_solubility", "predicted", s=5, figsize=(4, 4), alpha=0.5)

# %% [markdown]
# ## Similar molecules
#
# Near in the embedding means similar to the teachers. Here are the nearest neighbours of aspirin among the molecules of
# the table.

# %%
near = cosine_similarity(student.embed(["CC(=O)Oc1ccccc1C(=O)O"]), student.embed(table["smiles"]))
table.assign(cosine=near.numpy().round(3)).nlargest(4, "cosine")

# %% [markdown]
# ## Is it better than its teachers?
#
# `evaluate` probes the student beside every teacher. One task proves little, and the verdict says so: name your own
# tasks for a real answer ([Evaluation](../evaluation.md)).

# %%
options = {"probe.seeds": [0], "probe.splits": ["random"], "probe.systems": ["student", "teachers"]}
records = pandas.DataFrame(distill.evaluate(student, {"solubility": Measured("solubility")}, options))
print(student.verdict)

# %% [markdown]
# ## Keep it
#
# The folder below is all that another machine needs: `distill.load_student("solubility-student")`. On the command line,
# `distill embed --student solubility-student --input x.csv --out y.parquet` embeds files of any size.

# %%
student.export("solubility-student")

# %%
print(f"{time.process_time():.0f} seconds of CPU time in this process")
