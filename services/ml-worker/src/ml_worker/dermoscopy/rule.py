"""Weights and thresholds of the total dermatoscopy score (TDS), as published."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What the score says of a lesion."""

    BENIGN = "benign"
    SUSPICIOUS = "suspicious"
    HIGHLY_SUSPICIOUS = "highly suspicious for melanoma"


@dataclass(frozen=True, slots=True)
class Rule:
    """A weighted sum of four scores and what its value means.

    Below `suspicious_from` the lesion counts as benign; above `highly_suspicious_above` as highly
    suspicious. source, counter_evidence: publications, to be shown beside each score.
    """

    asymmetry: float
    border: float
    colors: float
    structures: float
    suspicious_from: float
    highly_suspicious_above: float
    source: str
    counter_evidence: str

    def total(self, asymmetry: int, border: int, colors: int, structures: int) -> float:
        """The total dermatoscopy score: 1.0 to 8.9 under the published weights."""
        return (
            self.asymmetry * asymmetry
            + self.border * border
            + self.colors * colors
            + self.structures * structures
        )

    def verdict(self, total: float) -> Verdict:
        """What a total says."""
        # Sums of tenths: 4.75 and 5.45 are never met exactly, but rounding must not cross them.
        total = round(total, 6)
        if total < self.suspicious_from:
            return Verdict.BENIGN
        return (
            Verdict.HIGHLY_SUSPICIOUS
            if total > self.highly_suspicious_above
            else Verdict.SUSPICIOUS
        )


NACHBAR_1994: Final = Rule(
    asymmetry=1.3,
    border=0.1,
    colors=0.5,
    structures=0.5,
    suspicious_from=4.75,
    highly_suspicious_above=5.45,
    source="Nachbar 1994, J Am Acad Dermatol 30(4):551-559, doi 10.1016/s0190-9622(94)70061-3",
    counter_evidence=(
        "Ahnlide 2016, Acta Derm Venereol 96(3): sensitivity 83 %, specificity 45 % in practice"
    ),
)
