"""Twenty ways in which DICOM toolkits and services err, and the tests that rehearse them.

Each is a bug that somebody had in production. `TRAPS` names the tests, most of which are in other
files; those below fill the gaps between them.
"""

import re
from pathlib import Path
from typing import Any, Final

import imagecodecs
import numpy as np
import pydicom
import pytest
from dicom_worker import limits
from dicom_worker.operations.deidentify import deidentify_dicom
from dicom_worker.testing import (
    Inspect,
    Render,
    array_of,
    edited,
    outcome,
    preview_of,
    saved,
    wheel_file,
)
from fluoro.v1.deidentify_pb2 import LONGITUDINAL_DATES_SHIFTED, DeidentifyDicom
from fluoro_jobs.testing import operate
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames, itemize_fragment
from pydicom.pixels.processing import convert_color_space
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit

TRAPS: Final = {
    "A file that is cut off is read as an empty data set": """
        a_file_cut_anywhere_is_truncated_and_never_succeeds
        no_cut_of_an_image_gives_an_image
        a_file_cut_right_before_its_pixel_data_is_truncated
        native_pixels_shorter_than_the_header_says_are_truncated
        each_file_ends_in_the_outcome_of_the_table""",
    "A file without its last byte decodes": """
        a_file_without_its_last_byte_is_truncated
        a_frame_that_is_cut_before_its_end_marker_is_refused
        a_cut_off_tile_is_found_though_the_end_marker_is_there
        a_jpeg_that_ends_long_before_its_frame_is_refused""",
    "Anything is taken for DICOM, and real files without a preamble are not": """
        what_is_no_dicom_at_all_is_refused
        a_file_without_preamble_or_without_meta_information_is_read_as_its_first_bytes_say
        compressed_pixels_without_meta_information_are_refused""",
    "A small file asks for all the memory there is": """
        a_deflated_file_of_a_gigabyte_is_refused_in_64_mib
        a_header_that_claims_more_than_the_budget_is_refused_before_anything_is_allocated
        more_frames_than_the_limit_are_refused_however_small
        sequences_nested_without_end_are_refused
        more_elements_than_the_limit_are_refused
        more_fragments_than_the_limit_are_refused
        more_tiles_than_a_code_stream_may_have_are_refused
        a_bomb_is_refused_before_anything_is_allocated
        a_bomb_takes_no_memory""",
    "A decoder gives zeros for lossless JPEG of 9 to 15 bits": """
        lossless_jpeg_of_12_bits_that_came_out_as_zeros_is_refused
        both_decoders_of_a_lossless_syntax_give_the_original
        a_damaged_lossless_jpeg_is_refused""",
    "Sign and precision of JPEG 2000 are not those of the header": """
        a_jpeg_2000_code_stream_is_read_by_its_own_sign_and_precision
        a_jpeg_2000_value_that_the_header_cannot_hold_is_refused
        signed_values_in_a_format_without_a_sign_are_twos_complement_of_its_precision""",
    "The colour space is another than Photometric Interpretation says": """
        the_colour_space_is_that_of_the_jpeg_markers
        jpeg_2000_of_ybr_without_its_own_transform_becomes_rgb
        native_ybr_of_both_samplings_looks_as_dcmtk_shows_it
        ybr_full_422_that_is_not_subsampled_is_refused
        colour_spaces_without_a_meaning_of_ours_are_refused
        of_lossy_colour_within_what_decoders_differ_by""",
    "Planar Configuration is followed where it means nothing, or not where it does": """
        planar_configuration_makes_no_difference
        planar_configuration_means_nothing_in_compressed_pixels""",
    "Decoders differ, so that a model sees other values than yesterday": """
        both_decoders_of_lossy_jpeg_agree_to_a_few_grey_values
        one_image_in_every_lossless_encoding_gives_one_array
        the_certificate_is_true_of_the_array
        a_table_in_the_documentation_is_what_the_code_gives""",
    "JPEG of 12 bits, HTJ2K and video have one decoder or none": """
        jpeg_of_12_bits_agrees_with_dcmtk
        htj2k_decodes_to_the_original
        video_and_hevc_are_refused_with_a_type""",
    "Fragments, offset tables and delimiters are not what they seem": """
        fragments_need_not_be_frames
        an_rle_frame_of_several_fragments_is_refused
        frames_that_are_fewer_or_more_than_the_header_says_are_refused
        pixel_data_that_is_there_twice_is_refused
        a_delimiter_inside_of_a_fragment_ends_nothing
        pixels_of_an_icon_are_not_those_of_the_image
        an_offset_table_that_is_wrong_misleads_nobody""",
    "Steps of the grey scale are left out, or come in another order": """
        bits_above_high_bit_hold_overlays_and_are_no_pixels
        signed_values_of_fewer_bits_are_sign_extended
        the_modality_table_comes_first_and_wins_over_a_rescale
        a_slope_below_zero_turns_the_values_round
        the_window_of_the_file_is_applied_to_modality_values
        the_voi_table_wins_over_the_window_and_is_scaled_by_its_bits
        a_window_that_the_standard_forbids_is_not_used
        the_examples_of_the_standard
        with_a_sigmoid
        monochrome1_is_inverted_last_and_only_in_the_preview
        an_inverse_presentation_shape_inverts_once""",
    "Frames share what is their own, or are taken for colours": """
        frames_of_an_enhanced_object_have_their_own_rescale_and_shared_measures
        each_frame_of_an_enhanced_object_has_its_own_window_and_table
        frames_of_one_bit_may_start_anywhere_in_a_byte
        three_columns_of_grey_are_no_colour""",
    "Palettes lose their depth, or colour what is grey": """
        a_palette_of_16_bits_and_one_first_mapped_above_zero_become_rgb
        a_palette_of_8_bits_in_words_gives_8_bits
        a_segmented_palette_is_expanded
        a_palette_of_signed_pixels_begins_below_zero_whatever_its_vr_says
        a_supplemental_palette_leaves_values_as_they_are""",
    "Big endian, odd lengths, 32 bits and floats are read wrongly": """
        one_image_in_every_lossless_encoding_gives_one_array
        each_small_public_file_is_right_by_an_oracle_or_refused_with_a_reason
        colour_keeps_its_depth_in_the_array_and_only_the_picture_has_8_bits
        integers_beyond_24_bits_are_told_apart_in_the_picture
        float_pixel_data_is_rendered
        double_float_pixels_keep_their_values_up_to_the_array""",
    "A value that its VR forbids hides the rest, or ends the process": """
        each_file_ends_in_the_outcome_of_the_table
        one_unreadable_value_does_not_hide_the_rest
        a_value_that_begins_like_a_sequence_and_is_none_is_read
        whatever_is_wrong_with_a_file_no_operation_hangs_dies_or_fails_without_a_reason""",
    "Texts in other character sets are garbled, and names in them stay": """
        text_of_any_character_set_becomes_utf_8
        a_name_is_found_in_the_character_set_of_the_file
        a_name_in_another_character_set_than_declared_is_found_elsewhere
        no_planted_identifier_is_left_and_every_row_of_the_table_is_followed""",
    "De-identification ends at the top level of the header": """
        no_planted_identifier_is_left_and_every_row_of_the_table_is_followed
        metadata_inside_frames_goes_and_is_counted
        preamble_and_meta_information_hold_nothing_of_the_original
        instances_of_a_study_still_belong_together
        what_cannot_be_cleaned_is_refused
        a_clean_instance_says_what_was_done_and_nothing_more
        nothing_that_identifies_is_in_results_reports_names_or_logs
        bits_that_no_pixel_uses_are_cleared
        fragments_outside_of_pixel_data_go
        text_is_masked_and_the_file_says_so
        every_frame_of_a_film_is_masked_and_told_of
        dates_inside_of_sequences_shift_with_the_others
        a_uid_with_leading_zeros_is_replaced_wherever_it_stands""",
    "A file that was changed still describes the one before": """
        a_lossy_copy_is_another_instance_that_says_what_it_lost
        lossy_frames_without_a_word_of_it_get_one
        what_is_written_is_no_less_valid_than_its_source
        lossy_frames_become_uncompressed_ones
        a_clean_file_is_no_less_valid_than_its_source""",
    "Two files with one SOP Instance UID are taken for one, or for two": """
        what_looks_at_versions_tells_them_apart_and_refuses_none
        two_clean_files_under_one_uid_are_refused_and_leave_nothing
        copies_are_cleaned_to_the_same_bytes
        of_versions_the_first_one_is_stored_and_the_others_are_not_sent
        two_versions_of_an_instance_are_a_conflict_of_their_series_alone
        two_versions_of_a_slice_fail_their_series
        two_versions_of_an_instance_are_in_no_object
        versions_are_named_once_in_the_report_and_in_its_result""",
}
"""What goes wrong elsewhere → tests, whose names begin with `test_`."""

ROOT: Final = Path(__file__).parents[3]
FILES: Final = ("services/*/tests/test_*.py", "tests/*/test_*.py")


def test_each_trap_names_tests_that_exist() -> None:
    files = [path for pattern in FILES for path in ROOT.glob(pattern)]
    known = {
        name
        for path in files
        for name in re.findall(r"^def test_(\w+)\(", path.read_text("utf-8"), re.MULTILINE)
    }
    assert len(TRAPS) == 20
    assert {name for tests in TRAPS.values() for name in tests.split()} - known == set()


def test_more_fragments_than_the_limit_are_refused(
    inspect: Inspect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "ELEMENT_LIMIT", 1000)
    pixels = encapsulate([b"\0\0"] * 1001, has_bot=False)
    _, attempt = inspect(edited("SC_rgb_rle", PixelData=pixels))
    assert outcome(attempt) == "FAILED IMAGE_TOO_LARGE"


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk", "SC_jpeg_no_color_transform_2"])
def test_the_colour_space_is_that_of_the_jpeg_markers(name: str, render: Render) -> None:
    """One has JFIF's YBR, the other RGB by Adobe's marker."""
    said = ("RGB", "YBR_FULL", "YBR_FULL_422")
    result, _ = render(*(edited(name, PhotometricInterpretation=each) for each in said))
    assert len(result.images) == 3
    assert len({image.certificate.sha256 for image in result.images}) == 1


@pytest.mark.parametrize("said", ["YBR_FULL", "YBR_FULL_422"])
def test_jpeg_2000_of_ybr_without_its_own_transform_becomes_rgb(said: str, render: Render) -> None:
    rgb = dcmread(wheel_file("examples_rgb_color")).pixel_array
    ybr = convert_color_space(rgb, "RGB", "YBR_FULL")
    stream = imagecodecs.jpeg2k_encode(ybr, codecformat="j2k", reversible=True, level=0, mct=False)
    dataset = dcmread(wheel_file("examples_rgb_color"))
    dataset.file_meta.TransferSyntaxUID = JPEG2000Lossless
    dataset.PhotometricInterpretation = said
    dataset.PixelData = encapsulate([stream])
    dataset["PixelData"].VR = "OB"
    _, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt)[0], convert_color_space(ybr, "YBR_FULL", "RGB"))


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_dcmtk", "SC_rgb_rle"])
def test_planar_configuration_means_nothing_in_compressed_pixels(name: str, render: Render) -> None:
    result, _ = render(*(edited(name, PlanarConfiguration=each) for each in (0, 1)))
    one, other = (image.certificate.sha256 for image in result.images)
    assert one == other


def compressed(fragments: bytes, **changes: Any) -> bytes:
    """The image of SC_rgb_jpeg_dcmtk in these items, the offset table first."""
    return edited("SC_rgb_jpeg_dcmtk", PixelData=fragments, **changes)


def jpeg() -> bytes:
    """Its code stream."""
    dataset = dcmread(wheel_file("SC_rgb_jpeg_dcmtk"))
    return next(generate_frames(dataset.PixelData, number_of_frames=1))


def test_a_delimiter_inside_of_a_fragment_ends_nothing(render: Render) -> None:
    delimiter = bytes.fromhex("feffdde000000000")
    comment = b"\xff\xfe" + (2 + len(delimiter)).to_bytes(2, "big") + delimiter
    stream = jpeg()
    other = stream[:2] + comment + stream[2:]
    result, _ = render(*(compressed(encapsulate([each])) for each in (stream, other)))
    one, same = (image.certificate.sha256 for image in result.images)
    assert one == same


def test_pixels_of_an_icon_are_not_those_of_the_image(render: Render) -> None:
    icon = Dataset()
    icon.Rows = icon.Columns = 8
    icon.SamplesPerPixel, icon.PhotometricInterpretation = 1, "MONOCHROME2"
    icon.BitsAllocated, icon.BitsStored, icon.HighBit, icon.PixelRepresentation = 8, 8, 7, 0
    grey = imagecodecs.jpeg8_encode(np.zeros((8, 8), np.uint8))
    icon.add_new("PixelData", "OB", encapsulate([grey]))
    icon["PixelData"].is_undefined_length = True
    plain = dcmread(wheel_file("SC_rgb_jpeg_dcmtk"))
    assert plain.file_meta.TransferSyntaxUID == JPEGBaseline8Bit
    before = saved(plain)
    plain.IconImageSequence = Sequence([icon])
    result, _ = render(before, saved(plain))
    one, same = (image.certificate.sha256 for image in result.images)
    assert one == same


@pytest.mark.parametrize("offset", [2, 8, 10_000_000])
def test_an_offset_table_that_is_wrong_misleads_nobody(offset: int, render: Render) -> None:
    """One fragment for each frame leaves no choice; of several, it is that or a refusal."""
    dataset = dcmread(wheel_file("examples_ybr_color"))
    frames = list(generate_frames(dataset.PixelData, number_of_frames=30))[:2]
    right = edited("examples_ybr_color", NumberOfFrames=2, PixelData=encapsulate(frames))
    table = itemize_fragment(bytes(4) + offset.to_bytes(4, "little"))
    halves = [half for frame in frames for half in (frame[:1000], frame[1000:])]
    wrong = [
        edited(
            "examples_ybr_color",
            NumberOfFrames=2,
            PixelData=table + b"".join(map(itemize_fragment, each)),
        )
        for each in (frames, halves)
    ]
    result, attempt = render(right, *wrong)
    assert [image.certificate.sha256 for image in result.images[:2]] == [
        result.images[0].certificate.sha256
    ] * 2
    assert outcome(attempt, 2) == "FAILED PIXELS_UNDECODABLE"


def test_a_slope_below_zero_turns_the_values_round(render: Render) -> None:
    stored = dcmread(wheel_file("CT_small")).pixel_array
    _, attempt = render(edited("CT_small", RescaleSlope=-2, RescaleIntercept=10))
    assert np.array_equal(array_of(attempt)[0], 10 - 2 * stored.astype(int))


def test_three_columns_of_grey_are_no_colour(render: Render) -> None:
    values = np.arange(3 * 5 * 3, dtype="<i2").reshape(3, 5, 3)
    dataset = dcmread(wheel_file("CT_small"))
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape
    dataset.PixelData = values.tobytes()
    dataset.RescaleIntercept = 0
    result, attempt = render(saved(dataset))
    assert np.array_equal(array_of(attempt), values)
    assert list(result.images[0].certificate.shape) == [3, 5, 3]
    assert preview_of(attempt).shape == (5, 3)


def test_a_supplemental_palette_leaves_values_as_they_are(render: Render) -> None:
    """Pixel Presentation COLOR (PS3.3 C.8.15.3.2) colours what a map lays over the image."""
    dataset = dcmread(wheel_file("CT_small"))
    before = saved(dataset)
    dataset.PixelPresentation = "COLOR"
    for channel in ("Red", "Green", "Blue"):
        dataset.add_new(f"{channel}PaletteColorLookupTableDescriptor", "US", [256, 2000, 16])
        dataset.add_new(f"{channel}PaletteColorLookupTableData", "OW", bytes(512))
    result, attempt = render(before, saved(dataset))
    one, same = (image.certificate.sha256 for image in result.images)
    assert one == same
    assert np.array_equal(preview_of(attempt, 0), preview_of(attempt, 1))


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The project `trial` has one."""
    (tmp_path / "trial").write_bytes(b"0123456789abcdef0123456789abcdef")
    monkeypatch.setenv("FLUORO_DEIDENTIFY_KEYS_FOLDER", str(tmp_path))


@pytest.mark.usefixtures("keys")
def test_dates_inside_of_sequences_shift_with_the_others(tmp_path: Path) -> None:
    """SUV need the time between the injection and the series."""
    injected = Dataset()
    injected.RadiopharmaceuticalStartDateTime = "20040118233000"
    dataset = dcmread(wheel_file("CT_small"))
    dataset.SeriesDate, dataset.SeriesTime = "20040119", "003000"
    dataset.RadiopharmaceuticalInformationSequence = Sequence([injected])
    request = DeidentifyDicom(project="trial", dates=LONGITUDINAL_DATES_SHIFTED)
    _, attempt = operate(deidentify_dicom, request, tmp_path / "run", [saved(dataset)])
    path = tmp_path / "clean.dcm"
    path.write_bytes(attempt.read("instance-0000.dcm"))
    clean = pydicom.dcmread(path)
    start = clean.RadiopharmaceuticalInformationSequence[0].RadiopharmaceuticalStartDateTime
    assert not clean.SeriesDate.startswith("2004")
    day = np.datetime64(f"{clean.SeriesDate[:4]}-{clean.SeriesDate[4:6]}-{clean.SeriesDate[6:]}")
    assert start == f"{str(day - 1).replace('-', '')}233000"
    assert clean.SeriesTime == "003000"


@pytest.mark.usefixtures("keys")
def test_a_uid_with_leading_zeros_is_replaced_wherever_it_stands(tmp_path: Path) -> None:
    """PS3.5 9.1 forbids it; some modalities do it, and strict readers then leave it in place."""
    good, odd = b"1.2.840.1113.12.5", b"1.2.840.0113.02.5"
    reference = Dataset()
    reference.ReferencedSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    reference.ReferencedSOPInstanceUID = good.decode()
    dataset = dcmread(wheel_file("CT_small"))
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = good.decode()
    dataset.ReferencedImageSequence = Sequence([reference])
    source = saved(dataset).replace(good, odd)
    request = DeidentifyDicom(project="trial")
    _, attempt = operate(deidentify_dicom, request, tmp_path / "run", [source])
    assert outcome(attempt) == "SUCCEEDED"
    data = attempt.read("instance-0000.dcm")
    assert odd not in data
    path = tmp_path / "clean.dcm"
    path.write_bytes(data)
    clean = pydicom.dcmread(path)
    assert clean.SOPInstanceUID.startswith("2.25.")
    assert clean.ReferencedImageSequence[0].ReferencedSOPInstanceUID == clean.SOPInstanceUID
