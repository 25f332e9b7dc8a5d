"""What several pages share: numbers, charts as SVG, templates."""
