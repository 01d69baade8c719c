"""DICOMweb (PS3.18): searching, retrieving and storing instances on other servers."""
