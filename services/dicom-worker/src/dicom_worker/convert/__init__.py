"""Images in other formats: volumes as NIfTI and NPY, DICOM in another Transfer Syntax."""
