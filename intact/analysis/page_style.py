"""The style and the script of the page; without the script, the page lacks search and sorting."""

STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf7;--card:#fff;--ink:#22272e;--soft:#68707b;--line:#e5e2da;
--main:#2f7f86;--pale:#d3e6e6;--good:#4a9a6a;--fair:#cf9a2b;--bad:#c8553d;--float:#8a63b8}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--card:#1c2026;--ink:#e4e6e9;--soft:#969ea9;
--line:#2c323a;--main:#5fb3ba;--pale:#24444a;--good:#63b887;--fair:#dcb04f;--bad:#e07a62;--float:#b195dc}}
*{box-sizing:border-box}
body{margin:0 auto;padding:28px 16px 64px;max-width:920px;background:var(--bg);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;-webkit-text-size-adjust:100%}
h1{font-size:24px;line-height:1.25;margin:0;overflow-wrap:anywhere}
h2{font-size:17px;margin:40px 0 4px}
p{margin:4px 0 12px;color:var(--soft);max-width:66ch}
code{font:13px ui-monospace,SFMono-Regular,Menlo,monospace;overflow-wrap:anywhere;color:var(--ink)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:10px;
margin:20px 0 0}
.tile{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}
.tile b{display:block;font-size:22px;font-weight:600;line-height:1.3;
font-variant-numeric:tabular-nums}
.tile span{color:var(--soft);font-size:13px;line-height:1.35;display:block}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;
margin:10px 0;padding:14px}
.card h3{font-size:15px;margin:0;overflow-wrap:anywhere;display:flex;gap:8px;flex-wrap:wrap;
align-items:baseline}
.card h3 small,.kind,.facts{color:var(--soft);font-weight:400;font-size:13px}
.card ul{margin:8px 0 4px;padding-left:18px}.card li{margin:3px 0}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:16px;margin-top:12px}
p.note{font-size:12.5px;margin:8px 0 0}
figure{margin:0;max-width:340px}figcaption{font-size:12.5px;color:var(--soft);line-height:1.4}
figcaption b{color:var(--ink);font-weight:600}
svg{display:block}figure svg{width:100%;height:72px;margin:4px 0}
.list{background:var(--card);border:1px solid var(--line);border-radius:12px;overflow:hidden}
.list details+details{border-top:1px solid var(--line)}
summary{cursor:pointer;list-style:none;padding:9px 14px;display:grid;align-items:center;
grid-template-columns:minmax(0,1fr) 64px;gap:2px 12px}
summary::-webkit-details-marker{display:none}
summary:hover{background:color-mix(in srgb,var(--pale) 30%,transparent)}
.name{overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
.number{text-align:right;font-variant-numeric:tabular-nums;font-size:14px}
.bar{grid-column:1/-1;height:5px;border-radius:3px;background:var(--line);position:relative}
.bar i{position:absolute;inset:0 auto 0 0;border-radius:3px;background:var(--tone,var(--main))}
.bar u{position:absolute;top:-3px;width:3px;height:11px;border-radius:2px;background:var(--ink)}
.inside{padding:0 14px 14px}
[hidden]{display:none!important}
#tools{display:flex;gap:10px;flex-wrap:wrap;margin:8px 0}
#tools input,#tools select{font:inherit;padding:5px 10px;border:1px solid var(--line);
border-radius:8px;background:var(--card);color:var(--ink)}#tools input{flex:1;min-width:140px}
a{color:inherit;text-decoration-color:var(--main);text-underline-offset:3px}
:target{outline:2px solid var(--main);border-radius:6px}
.axis{display:flex;justify-content:space-between;font-size:11.5px;color:var(--soft);
font-variant-numeric:tabular-nums}
.legend{font-size:13px;display:flex;flex-wrap:wrap;gap:4px 16px;color:var(--soft);margin:6px 0 10px}
.legend em{display:inline-block;width:11px;height:11px;border-radius:3px;margin-right:5px;
background:var(--tone,var(--main))}
.flips{display:grid;grid-template-columns:repeat(auto-fill,minmax(104px,1fr));gap:10px}
.flips figcaption{text-align:center}
.flips img{width:100%;border-radius:8px;image-rendering:pixelated}
.good{--tone:var(--good)}.fair{--tone:var(--fair)}.bad{--tone:var(--bad)}
.tag{font-size:12px;border-radius:6px;padding:1px 7px;background:var(--pale);color:var(--ink);
white-space:nowrap}
.tag.float{background:color-mix(in srgb,var(--float) 22%,transparent)}
.tag.score{background:color-mix(in srgb,var(--tone) 24%,transparent)}
.rail{display:flex;align-items:center;height:30px;gap:8px;padding:0 14px 0 6px}
.rail svg{flex:none}.rail .name{flex:1;font-size:14px}.rail .kind{flex:none;font-size:12px}
.rail.float{background:color-mix(in srgb,var(--float) 11%,transparent)}
.rail path{fill:none;stroke:var(--soft);stroke-width:1.5}
.rail circle{fill:var(--main)}.rail.float circle{fill:var(--float)}
.a{fill:var(--main)}.w{fill:var(--good)}.d{fill:var(--fair)}
.edge{stroke:var(--bad);stroke-dasharray:3 2}
.out{fill:var(--bad);opacity:.1}.base{stroke:var(--line)}
@media(min-width:640px){summary{grid-template-columns:minmax(0,1fr) 220px 72px}
.bar{grid-column:2;grid-row:1}.number{grid-column:3}}
@media(max-width:480px){.rail .kind{max-width:56%;font-size:11px;line-height:13px;text-align:right}}
@media print{details>*{display:block}}
"""

SCRIPT = """
(()=>{const list=document.getElementById("layers"),tools=document.getElementById("tools");
const open=()=>{const to=document.getElementById(location.hash.slice(1));
const around=to&&to.closest("details");if(around){around.open=true;to.scrollIntoView()}};
addEventListener("hashchange",open);open();if(!list)return;
const rows=[...list.children],[words,by]=tools.children;tools.hidden=false;
const show=()=>{const part=words.value.toLowerCase(),key=by.value;
rows.forEach(row=>row.hidden=!row.dataset.name.includes(part));
[...rows].sort((a,b)=>a.dataset[key]-b.dataset[key]).forEach(row=>list.append(row))};
words.oninput=by.onchange=show})()
"""
