"""The style of a topology's picture in light and dark; its rules apply inside such a picture only."""

from __future__ import annotations

STYLE = """
.ivsim-graph text { font: 12px system-ui, -apple-system, Segoe UI, Roboto, sans-serif; fill: #1c2430; }
.ivsim-graph .title { font-size: 19px; font-weight: 650; }
.ivsim-graph .name { font-size: 15px; font-weight: 650; }
.ivsim-graph .what, .ivsim-graph .strong { font-weight: 500; }
.ivsim-graph .quiet { fill: #66707f; }
.ivsim-graph .quiet .strong { fill: #1c2430; }
.ivsim-graph .note { fill: #9a4a08; }
.ivsim-graph .paper { fill: #ffffff; }
.ivsim-graph .domain { fill: #f4f6f9; stroke: #d5dbe4; }
.ivsim-graph .card { fill: #ffffff; stroke: #8a96a8; stroke-width: 1.2; }
.ivsim-graph .absent { stroke-dasharray: 6 4; fill: #fbfbfc; }
.ivsim-graph .accent { fill: #d9730d; }
.ivsim-graph .edge { fill: none; stroke: #2f6fc4; stroke-width: 1.5; }
.ivsim-graph .head { fill: #2f6fc4; }
.ivsim-graph .member { fill: none; stroke: #8a96a8; stroke-width: 1.4; stroke-dasharray: 2 5; stroke-linecap: round; }
.ivsim-graph .edge-label { font-size: 11.5px; fill: #24548f; paint-order: stroke; stroke: #f4f6f9; stroke-width: 4px;
  stroke-linejoin: round; }
.ivsim-graph .thread { fill: none; stroke: #2f6fc4; }
.ivsim-graph .arc { fill: none; stroke-linecap: round; stroke: #b6c0cf; stroke-width: 3; }
.ivsim-graph .dot { fill: #2f6fc4; stroke: #ffffff; }
.ivsim-graph .dot.absent { fill: #ffffff; stroke: #2f6fc4; }
.ivsim-graph .dot.noted { fill: #d9730d; }
@media (prefers-color-scheme: dark) {
  .ivsim-graph text { fill: #e6eaf1; }
  .ivsim-graph .quiet { fill: #97a3b5; }
  .ivsim-graph .quiet .strong { fill: #e6eaf1; }
  .ivsim-graph .note { fill: #f0a868; }
  .ivsim-graph .paper { fill: #12161d; }
  .ivsim-graph .domain { fill: #1a2029; stroke: #303a48; }
  .ivsim-graph .card { fill: #222a35; stroke: #6b7a8f; }
  .ivsim-graph .absent { fill: #1c232d; }
  .ivsim-graph .accent { fill: #f0933f; }
  .ivsim-graph .edge { stroke: #6fa8f0; }
  .ivsim-graph .head { fill: #6fa8f0; }
  .ivsim-graph .member { stroke: #7d8a9d; }
  .ivsim-graph .edge-label { fill: #a9cbf7; stroke: #1a2029; }
  .ivsim-graph .thread { stroke: #6fa8f0; }
  .ivsim-graph .arc { stroke: #46536a; }
  .ivsim-graph .dot { fill: #6fa8f0; stroke: #12161d; }
  .ivsim-graph .dot.absent { fill: #12161d; stroke: #6fa8f0; }
  .ivsim-graph .dot.noted { fill: #f0933f; }
}
"""
