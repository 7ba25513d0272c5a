"""The frozen models by the paper's Fig. 1: image, vision, bridge, language, text; put together by `assembly`."""
