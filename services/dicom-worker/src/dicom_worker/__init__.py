"""CPU worker: inspects, decodes and renders DICOM."""
