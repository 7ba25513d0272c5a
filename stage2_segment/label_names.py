"""Names and colours of classes in a NIfTI file's header extension.

The extension is Caret's label table in XML under code 0, as TotalSegmentator writes it and its `load_multilabel_nifti` reads
it. Caret's own code would be 30, whose content nibabel does not give out. Programs that do not know the extension pass
it by; voxels and geometry are the same with and without.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

import nibabel

from zeus_union.cache.colours import class_colour

CODE = 0
# What XML 1.0 cannot hold, not even as an escape.
_NOT_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def label_table(classes: Sequence[str]) -> nibabel.nifti1.Nifti1Extension:
    """The extension for a label map in which label k is classes[k - 1]."""
    root = ElementTree.Element("CaretExtension")
    volume = ElementTree.SubElement(root, "VolumeInformation", Index="0")
    table = ElementTree.SubElement(volume, "LabelTable")
    for label, name in enumerate(classes, 1):
        red, green, blue = (f"{part / 255:.4f}" for part in class_colour(label))
        entry = ElementTree.SubElement(table, "Label", Key=str(label), Red=red, Green=green, Blue=blue, Alpha="1")
        entry.text = _NOT_XML.sub("-", name)
    ElementTree.SubElement(volume, "StudyMetaDataLinkSet")
    ElementTree.SubElement(volume, "VolumeType").text = "Label"
    content = ElementTree.tostring(root, encoding="UTF-8", xml_declaration=True)
    return nibabel.nifti1.Nifti1Extension(CODE, content)


def read_label_table(image: Any) -> dict[int, str]:
    """Label -> class, of an image that nibabel opened; empty where its header has no label table."""
    for extension in image.header.extensions:
        if extension.get_code() == CODE and b"<CaretExtension>" in extension.get_content():
            entries = ElementTree.fromstring(extension.get_content()).iter("Label")
            return {int(entry.attrib["Key"]): entry.text or "" for entry in entries}
    return {}
