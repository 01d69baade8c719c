"""Windows for CT by name, in Hounsfield units. docs/rendering.md is written from the table."""

from dataclasses import dataclass
from typing import Final

from fluoro.v1.dicom_pb2 import WindowPreset

from dicom_worker.pixels.voi import Window

OHIF: Final = "OHIF viewer 3, default window level presets"
RADIOPAEDIA: Final = "Radiopaedia, Windowing (CT)"


@dataclass(frozen=True, slots=True)
class Preset:
    """A window and where its values are from."""

    window: Window
    source: str


PRESETS: Final = {
    WindowPreset.WINDOW_PRESET_LUNG: Preset(Window(-600, 1500), OHIF),
    WindowPreset.WINDOW_PRESET_MEDIASTINUM: Preset(Window(50, 350), RADIOPAEDIA),
    WindowPreset.WINDOW_PRESET_SOFT_TISSUE: Preset(Window(40, 400), OHIF),
    WindowPreset.WINDOW_PRESET_LIVER: Preset(Window(90, 150), OHIF),
    WindowPreset.WINDOW_PRESET_BONE: Preset(Window(480, 2500), OHIF),
    WindowPreset.WINDOW_PRESET_BRAIN: Preset(Window(40, 80), OHIF),
    WindowPreset.WINDOW_PRESET_STROKE: Preset(Window(40, 40), RADIOPAEDIA),
    WindowPreset.WINDOW_PRESET_TEMPORAL_BONE: Preset(Window(600, 2800), RADIOPAEDIA),
}
