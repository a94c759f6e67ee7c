"""What the book's pages need beyond Jupyter Book's own output."""

from myst_nb.core.render import NbElementRenderer


def carry_alt_text():
    """Take the alt text of an output's metadata over to the image on the page."""
    render_image = NbElementRenderer.render_image

    def with_alt(self, data):
        nodes = render_image(self, data)
        alt = data.output_metadata.get(data.mime_type, {}).get("alt")
        if alt:
            nodes[0]["alt"] = alt
        return nodes

    NbElementRenderer.render_image = with_alt


def leave_thebe_out(app, config):
    """Thebe is off, but its scripts would be on each page twice, which is an error."""
    for event, listeners in app.events.listeners.items():
        app.events.listeners[event] = [
            one
            for one in listeners
            if getattr(one.handler, "__name__", "") != "init_thebe_core"
        ]


def setup(app):
    carry_alt_text()
    app.connect("config-inited", leave_thebe_out)
    return {"parallel_read_safe": True}
