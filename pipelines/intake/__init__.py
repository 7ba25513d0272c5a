"""What a user has of a study (DICOM, a zip, NIfTI) as the modalities of a run on one grid."""
