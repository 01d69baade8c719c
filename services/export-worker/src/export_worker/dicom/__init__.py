"""DICOM objects of what earlier steps found, written through highdicom."""
