"""Common knowledge with one right answer, as plain tables. Names without a Latin diacritic; aliases behind `|`."""

from __future__ import annotations


def _rows(text: str) -> list[list[str]]:
    return [[part.strip() for part in row.split(":")] for row in text.replace("\n", ";").split(";") if row.strip()]


def _pairs(text: str) -> list[tuple[str, list[str]]]:
    return [(key, aliases.split("|")) for key, aliases in _rows(text)]


# Country : capital : continent. Without those whose capital has their name.
COUNTRIES = [
    (country, capital.split("|"), continent.split("|"))
    for country, capital, continent in _rows("""
France:Paris:Europe; Germany:Berlin:Europe; Italy:Rome:Europe; Spain:Madrid:Europe; Portugal:Lisbon:Europe
Austria:Vienna:Europe; Switzerland:Bern|Berne:Europe; Belgium:Brussels:Europe; the Netherlands:Amsterdam:Europe
Denmark:Copenhagen:Europe; Norway:Oslo:Europe; Sweden:Stockholm:Europe; Finland:Helsinki:Europe
Iceland:Reykjavik:Europe; Ireland:Dublin:Europe; the United Kingdom:London:Europe; Poland:Warsaw:Europe
Hungary:Budapest:Europe; Czechia:Prague:Europe; Slovakia:Bratislava:Europe; Slovenia:Ljubljana:Europe
Croatia:Zagreb:Europe; Serbia:Belgrade:Europe; Bosnia and Herzegovina:Sarajevo:Europe; Montenegro:Podgorica:Europe
Albania:Tirana:Europe; North Macedonia:Skopje:Europe; Greece:Athens:Europe; Bulgaria:Sofia:Europe
Romania:Bucharest:Europe; Moldova:Chisinau:Europe; Ukraine:Kyiv|Kiev:Europe; Belarus:Minsk:Europe
Lithuania:Vilnius:Europe; Latvia:Riga:Europe; Estonia:Tallinn:Europe; Malta:Valletta:Europe
Liechtenstein:Vaduz:Europe; Japan:Tokyo:Asia; China:Beijing|Peking:Asia; South Korea:Seoul:Asia
North Korea:Pyongyang:Asia; Mongolia:Ulaanbaatar|Ulan Bator:Asia; India:New Delhi|Delhi:Asia; Pakistan:Islamabad:Asia
Bangladesh:Dhaka:Asia; Nepal:Kathmandu:Asia; Bhutan:Thimphu:Asia; Sri Lanka:Colombo|Sri Jayawardenepura Kotte:Asia
Myanmar:Naypyidaw|Nay Pyi Taw:Asia; Thailand:Bangkok:Asia; Laos:Vientiane:Asia; Cambodia:Phnom Penh:Asia
Vietnam:Hanoi:Asia; Malaysia:Kuala Lumpur:Asia; Indonesia:Jakarta:Asia; the Philippines:Manila:Asia
Brunei:Bandar Seri Begawan:Asia; East Timor:Dili:Asia; Afghanistan:Kabul:Asia; Iran:Tehran|Teheran:Asia
Iraq:Baghdad:Asia; Syria:Damascus:Asia; Lebanon:Beirut:Asia; Jordan:Amman:Asia; Saudi Arabia:Riyadh:Asia
Yemen:Sanaa|Sana'a:Asia; Oman:Muscat:Asia; Qatar:Doha:Asia; Bahrain:Manama:Asia
the United Arab Emirates:Abu Dhabi:Asia; Uzbekistan:Tashkent:Asia; Turkmenistan:Ashgabat:Asia
Tajikistan:Dushanbe:Asia; Kyrgyzstan:Bishkek:Asia; Egypt:Cairo:Africa; Libya:Tripoli:Africa; Morocco:Rabat:Africa
Sudan:Khartoum:Africa; South Sudan:Juba:Africa; Ethiopia:Addis Ababa:Africa; Eritrea:Asmara:Africa
Somalia:Mogadishu:Africa; Kenya:Nairobi:Africa; Uganda:Kampala:Africa; Tanzania:Dodoma:Africa; Rwanda:Kigali:Africa
Burundi:Gitega|Bujumbura:Africa; Zambia:Lusaka:Africa; Zimbabwe:Harare:Africa; Malawi:Lilongwe:Africa
Mozambique:Maputo:Africa; Botswana:Gaborone:Africa; Namibia:Windhoek:Africa; Angola:Luanda:Africa
Madagascar:Antananarivo:Africa; Mauritius:Port Louis:Africa; Lesotho:Maseru:Africa; Nigeria:Abuja:Africa
Ghana:Accra:Africa; Ivory Coast:Yamoussoukro:Africa; Senegal:Dakar:Africa; Mali:Bamako:Africa; Niger:Niamey:Africa
Chad:N'Djamena|Ndjamena:Africa; Cameroon:Yaounde:Africa; Gabon:Libreville:Africa; Burkina Faso:Ouagadougou:Africa
Togo:Lome:Africa; Benin:Porto-Novo:Africa; Liberia:Monrovia:Africa; Sierra Leone:Freetown:Africa
Guinea:Conakry:Africa; Gambia:Banjul:Africa; Mauritania:Nouakchott:Africa; Cape Verde:Praia:Africa
the Central African Republic:Bangui:Africa; the Seychelles:Victoria:Africa; Canada:Ottawa:North America
the United States:Washington|Washington DC|Washington D C:North America; Cuba:Havana:North America
Jamaica:Kingston:North America; Haiti:Port-au-Prince:North America; the Dominican Republic:Santo Domingo:North America
Costa Rica:San Jose:North America; Honduras:Tegucigalpa:North America; Nicaragua:Managua:North America
Belize:Belmopan:North America; Barbados:Bridgetown:North America; Trinidad and Tobago:Port of Spain:North America
the Bahamas:Nassau:North America; Brazil:Brasilia:South America; Argentina:Buenos Aires:South America
Chile:Santiago:South America; Peru:Lima:South America; Colombia:Bogota:South America; Venezuela:Caracas:South America
Ecuador:Quito:South America; Uruguay:Montevideo:South America; Paraguay:Asuncion:South America
Guyana:Georgetown:South America; Suriname:Paramaribo:South America; Australia:Canberra:Oceania|Australia
New Zealand:Wellington:Oceania; Fiji:Suva:Oceania; Samoa:Apia:Oceania; Tonga:Nuku'alofa|Nukualofa:Oceania
Vanuatu:Port Vila:Oceania; Papua New Guinea:Port Moresby:Oceania; the Solomon Islands:Honiara:Oceania
""")
]

# By atomic number, from 1.
ELEMENTS = [
    (name, symbol)
    for name, symbol in _rows("""
hydrogen:H; helium:He; lithium:Li; beryllium:Be; boron:B; carbon:C; nitrogen:N; oxygen:O; fluorine:F; neon:Ne
sodium:Na; magnesium:Mg; aluminium:Al; silicon:Si; phosphorus:P; sulfur:S; chlorine:Cl; argon:Ar; potassium:K
calcium:Ca; scandium:Sc; titanium:Ti; vanadium:V; chromium:Cr; manganese:Mn; iron:Fe; cobalt:Co; nickel:Ni; copper:Cu
zinc:Zn; gallium:Ga; germanium:Ge; arsenic:As; selenium:Se; bromine:Br; krypton:Kr; rubidium:Rb; strontium:Sr
yttrium:Y; zirconium:Zr; niobium:Nb; molybdenum:Mo; technetium:Tc; ruthenium:Ru; rhodium:Rh; palladium:Pd; silver:Ag
cadmium:Cd; indium:In; tin:Sn; antimony:Sb; tellurium:Te; iodine:I; xenon:Xe; caesium:Cs; barium:Ba; lanthanum:La
cerium:Ce; praseodymium:Pr; neodymium:Nd; promethium:Pm; samarium:Sm; europium:Eu; gadolinium:Gd; terbium:Tb
dysprosium:Dy; holmium:Ho; erbium:Er; thulium:Tm; ytterbium:Yb; lutetium:Lu; hafnium:Hf; tantalum:Ta; tungsten:W
rhenium:Re; osmium:Os; iridium:Ir; platinum:Pt; gold:Au; mercury:Hg; thallium:Tl; lead:Pb; bismuth:Bi; polonium:Po
astatine:At; radon:Rn; francium:Fr; radium:Ra; actinium:Ac; thorium:Th; protactinium:Pa; uranium:U; neptunium:Np
plutonium:Pu; americium:Am; curium:Cm
""")
]

ANTONYMS = _pairs("""
hot:cold|cool; big:small|little|tiny; tall:short; fast:slow; old:young|new; hard:soft|easy; rich:poor
light:dark|heavy; happy:sad|unhappy; early:late; high:low; wet:dry; clean:dirty; strong:weak; full:empty
open:closed|shut|close; near:far; thick:thin; wide:narrow; deep:shallow; loud:quiet|soft|silent; sharp:blunt|dull
sweet:sour|bitter; rough:smooth; brave:cowardly|fearful|afraid; cheap:expensive|costly; true:false|untrue
right:wrong|left; alive:dead; ancient:modern; asleep:awake; beautiful:ugly; best:worst; better:worse
above:below|under; up:down; in:out; inside:outside; front:back|rear; first:last; before:after; day:night
summer:winter; north:south; east:west; begin:end|finish|stop; start:finish|stop|end; win:lose; buy:sell
give:take|receive; push:pull; love:hate|hatred; remember:forget; laugh:cry|weep; arrive:depart|leave
accept:refuse|reject|decline; attack:defend|defence|defense; increase:decrease|reduce; appear:disappear|vanish
expand:contract|shrink; build:destroy|demolish; create:destroy; find:lose; forward:backward|backwards
friend:enemy|foe; guilty:innocent; healthy:sick|ill|unhealthy; heavy:light; import:export; include:exclude
join:separate|leave|split; major:minor; maximum:minimum; permanent:temporary; polite:rude|impolite; positive:negative
possible:impossible; private:public; question:answer; raise:lower; rise:fall|set; safe:dangerous|unsafe
success:failure; simple:complex|complicated; solid:liquid|hollow; straight:crooked|curved|bent; tight:loose
victory:defeat; visible:invisible; war:peace; wild:tame|domesticated; wise:foolish; generous:stingy|selfish|greedy
horizontal:vertical; humble:proud|arrogant; legal:illegal; lazy:hardworking|diligent|industrious; male:female
optimist:pessimist; patient:impatient; plural:singular; profit:loss; sunny:cloudy|rainy; sunrise:sunset
teacher:student|pupil; tragedy:comedy; vacant:occupied; entrance:exit; borrow:lend; freeze:melt|thaw; always:never
everything:nothing; many:few; more:less|fewer; odd:even; smile:frown
""")

PAST_TENSES = _pairs("""
go:went; eat:ate; drink:drank; see:saw; take:took; give:gave; run:ran; swim:swam; sing:sang; write:wrote; drive:drove
ride:rode; speak:spoke; break:broke; choose:chose; steal:stole; freeze:froze; wake:woke; wear:wore; tear:tore
fly:flew; grow:grew; know:knew; throw:threw; blow:blew; draw:drew; begin:began; ring:rang; sink:sank; come:came
become:became; find:found; fight:fought; buy:bought; bring:brought; think:thought; teach:taught; catch:caught
seek:sought; feel:felt; keep:kept; sleep:slept; sweep:swept; leave:left; lose:lost; build:built; send:sent
spend:spent; lend:lent; bend:bent; hear:heard; hold:held; tell:told; sell:sold; say:said; pay:paid; stand:stood
understand:understood; win:won; shine:shone; dig:dug; stick:stuck; swing:swung; hang:hung; sit:sat; get:got
forget:forgot; shoot:shot; feed:fed; lead:led; meet:met; bite:bit; hide:hid; slide:slid; fall:fell; shake:shook
rise:rose; forgive:forgave; mean:meant; dream:dreamt|dreamed
""")

PLURALS = _pairs("""
child:children; mouse:mice; goose:geese; foot:feet; tooth:teeth; man:men; woman:women; ox:oxen; person:people|persons
leaf:leaves; knife:knives; wife:wives; life:lives; wolf:wolves; half:halves; shelf:shelves; loaf:loaves; thief:thieves
calf:calves; cactus:cacti|cactuses; crisis:crises; analysis:analyses; phenomenon:phenomena; criterion:criteria
bacterium:bacteria; fungus:fungi|funguses; nucleus:nuclei; radius:radii; medium:media; louse:lice; die:dice
potato:potatoes; tomato:tomatoes; hero:heroes; city:cities; baby:babies; berry:berries; box:boxes; church:churches
bus:buses; dish:dishes
""")

# English : French : Spanish : German
TRANSLATIONS = [
    (english, {"French": french.split("|"), "Spanish": spanish.split("|"), "German": german.split("|")})
    for english, french, spanish, german in _rows("""
water:eau:agua:wasser; bread:pain:pan:brot; milk:lait:leche:milch; house:maison:casa:haus; dog:chien:perro:hund
cat:chat:gato:katze; horse:cheval:caballo:pferd; bird:oiseau:pajaro|ave:vogel; fish:poisson:pez|pescado:fisch
tree:arbre:arbol:baum; flower:fleur:flor:blume; sun:soleil:sol:sonne; moon:lune:luna:mond; star:etoile:estrella:stern
sea:mer:mar:meer|see; fire:feu:fuego:feuer; earth:terre:tierra:erde; snow:neige:nieve:schnee; rain:pluie:lluvia:regen
wind:vent:viento:wind; book:livre:libro:buch; school:ecole:escuela:schule; friend:ami|amie:amigo|amiga:freund|freundin
mother:mere:madre:mutter; father:pere:padre:vater; brother:frere:hermano:bruder; sister:soeur:hermana:schwester
king:roi:rey:konig|koenig; queen:reine:reina:konigin|koenigin; city:ville:ciudad:stadt; street:rue:calle:strasse
door:porte:puerta:tur|tuer; window:fenetre:ventana:fenster; table:table:mesa:tisch; chair:chaise:silla:stuhl
bed:lit:cama:bett; apple:pomme:manzana:apfel; cheese:fromage:queso:kase|kaese; egg:oeuf:huevo:ei
meat:viande:carne:fleisch; wine:vin:vino:wein; red:rouge:rojo|roja:rot; green:vert|verte:verde:grun|gruen
blue:bleu|bleue:azul:blau; white:blanc|blanche:blanco|blanca:weiss; black:noir|noire:negro|negra:schwarz
yellow:jaune:amarillo|amarilla:gelb; hand:main:mano:hand; head:tete:cabeza:kopf; eye:oeil:ojo:auge
heart:coeur:corazon:herz; day:jour:dia:tag; night:nuit:noche:nacht; year:an|annee:ano:jahr
""")
]

AUTHORS = _pairs("""
Hamlet:William Shakespeare|Shakespeare; Macbeth:William Shakespeare|Shakespeare
Pride and Prejudice:Jane Austen|Austen; Emma:Jane Austen|Austen; Oliver Twist:Charles Dickens|Dickens
Great Expectations:Charles Dickens|Dickens; War and Peace:Leo Tolstoy|Tolstoy; Anna Karenina:Leo Tolstoy|Tolstoy
Crime and Punishment:Fyodor Dostoevsky|Dostoevsky|Dostoyevsky; Don Quixote:Miguel de Cervantes|Cervantes
The Divine Comedy:Dante Alighieri|Dante; Faust:Johann Wolfgang von Goethe|Goethe; Moby-Dick:Herman Melville|Melville
The Scarlet Letter:Nathaniel Hawthorne|Hawthorne; Walden:Henry David Thoreau|Thoreau
The Great Gatsby:F. Scott Fitzgerald|Fitzgerald; The Old Man and the Sea:Ernest Hemingway|Hemingway
The Grapes of Wrath:John Steinbeck|Steinbeck; To Kill a Mockingbird:Harper Lee
The Catcher in the Rye:J. D. Salinger|Salinger; Nineteen Eighty-Four:George Orwell|Orwell
Animal Farm:George Orwell|Orwell; Brave New World:Aldous Huxley|Huxley; Lord of the Flies:William Golding|Golding
The Hobbit:J. R. R. Tolkien|Tolkien; Dracula:Bram Stoker|Stoker; Frankenstein:Mary Shelley|Shelley
Jane Eyre:Charlotte Bronte; Wuthering Heights:Emily Bronte; Middlemarch:George Eliot; Ulysses:James Joyce|Joyce
Mrs Dalloway:Virginia Woolf|Woolf; Heart of Darkness:Joseph Conrad|Conrad; The Time Machine:H. G. Wells|Wells
Treasure Island:Robert Louis Stevenson|Stevenson; Robinson Crusoe:Daniel Defoe|Defoe
Gulliver's Travels:Jonathan Swift|Swift; Paradise Lost:John Milton|Milton
The Canterbury Tales:Geoffrey Chaucer|Chaucer; Les Miserables:Victor Hugo|Hugo
Madame Bovary:Gustave Flaubert|Flaubert; The Stranger:Albert Camus|Camus; The Metamorphosis:Franz Kafka|Kafka
The Trial:Franz Kafka|Kafka; The Magic Mountain:Thomas Mann|Mann
One Hundred Years of Solitude:Gabriel Garcia Marquez|Garcia Marquez; The Odyssey:Homer; The Aeneid:Virgil|Vergil
Candide:Voltaire; The Three Musketeers:Alexandre Dumas|Dumas; Little Women:Louisa May Alcott|Alcott
""")

CONTINENTS = (
    "Europe",
    "Asia",
    "Africa",
    "North America",
    "South America",
    "Oceania",
    "Australia",
    "America",
    "Antarctica",
)
