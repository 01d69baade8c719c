"""The ABCD rule of dermatoscopy on an image and a lesion mask, with the evidence for each score.

Nachbar 1994, J Am Acad Dermatol 30(4):551-559, doi 10.1016/s0190-9622(94)70061-3, scored by eye.
How each feature is told from pixels is ours, and each threshold below is tried on phantoms only.
"""

from ml_worker.dermoscopy.abcd import Assessment, assess
from ml_worker.dermoscopy.lesion import Lesion, LesionRefusedError, prepare
from ml_worker.dermoscopy.rule import NACHBAR_1994, Rule, Verdict

__all__ = (
    "NACHBAR_1994",
    "Assessment",
    "Lesion",
    "LesionRefusedError",
    "Rule",
    "Verdict",
    "assess",
    "prepare",
)
