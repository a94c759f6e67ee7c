"""Carry the alt text of an output's metadata to the image on the page."""

from myst_nb.core.render import NbElementRenderer


def setup(app):
    render_image = NbElementRenderer.render_image

    def with_alt(self, data):
        nodes = render_image(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        if alt:
            nodes[0]["alt"] = alt
        return nodes

    NbElementRenderer.render_image = with_alt
    return {"parallel_read_safe": True}
