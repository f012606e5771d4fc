"""The wording of the training conversations: phrases, stories, names. All of it written for lab3.

`[x|y]` stands for one of x and y, at random; `{a}`, `{b}`, `{c}` and `{d}` are the numbers in the order in which they
are spoken.
"""

from __future__ import annotations

# --- direct requests ---------------------------------------------------------------------------------------------

DIRECT: dict[tuple[str, str], tuple[str, ...]] = {
    ("add", "en"): (
        "[What is|What's|How much is|Compute|Calculate|Evaluate|Solve|Find|Work out|Tell me|Give me] {a} [+|plus] {b}",
        "[What is|What's|Find|Compute|Calculate|Tell me|Give me|Determine] the [sum|total] of {a} and {b}",
        "[Add|Please add|Can you add|Could you add|I want to add|Help me add|I'd like you to add] {a} [and|to] {b}",
        "[Sum|Sum up|Add up|Add together|Total] {a} and {b}",
        "[What do I get|What do you get|What comes out|What is the result] [if|when] I [add {a} to {b}|add {a} and {b}]",
        "{a} [+|plus] {b} [equals what|is how much|makes what|is what]",
        "{a} + {b}",
        "{a} + {b} =",
        "{a}+{b}=?",
        "[What number is|Which number is|Find the number that is] {a} [more|greater|larger] than {b}",
        "Increase {a} by {b}",
        "[I have the numbers|Take the numbers|Here are two numbers:] {a} and {b}. [What is their sum|Add them|Sum them up]",
        "[The sum of {a} and {b} is|What does {a} plus {b} come to]",
        "[Put {a} and {b} together|Combine {a} and {b} into one total]",
        "[The exercise says|The question is|Number one on the sheet]: {a} + {b}",
        "[Do the addition|Perform the addition|Carry out this addition]: {a} + {b}",
        "[If you start at {a} and go up by {b}, where do you end|Start from {a} and add {b}]",
    ),
    ("mul", "en"): (
        "[What is|What's|How much is|Compute|Calculate|Evaluate|Solve|Find|Work out|Tell me|Give me] "
        "{a} [*|×|x|times|multiplied by] {b}",
        "[What is|What's|Find|Compute|Calculate|Tell me|Give me|Determine] the product of {a} and {b}",
        "[Multiply|Please multiply|Can you multiply|Could you multiply|I want to multiply|Help me multiply] {a} [by|and|with] {b}",
        "[What do I get|What do you get|What comes out|What is the result] [if|when] I multiply {a} [by|and] {b}",
        "{a} [*|×|times|multiplied by] {b} [equals what|is how much|makes what|is what]",
        "{a} * {b}",
        "{a} × {b} =",
        "{a}*{b}=?",
        "[I have the numbers|Take the numbers|Here are two numbers:] {a} and {b}. "
        "[What is their product|Multiply them|Multiply them with each other]",
        "[The product of {a} and {b} is|What does {a} times {b} come to]",
        "[The exercise says|The question is|Number one on the sheet]: {a} [*|×] {b}",
        "[Do the multiplication|Perform the multiplication|Carry out this multiplication]: {a} [*|×] {b}",
        "[What number is|Which number is|Find the number that is] {a} times {b}",
        "[What is {a} taken {b} times|Scale {a} by a factor of {b}|Multiply {a} by a factor of {b}]",
        "[Find the area of a rectangle with sides|What is the area of a rectangle that measures] {a} and {b}",
    ),
    ("add", "zh"): (
        "{a}[加|加上|+]{b}[等于多少|是多少|等于几|得多少|的结果是多少]",
        "[请计算|计算|算一下|帮我算|帮我算一下|请帮我计算|求|请问]{a}[加|加上|+]{b}",
        "[请计算|计算|求|请求出|告诉我]{a}[和|与]{b}的[和|总和]",
        "{a}[和|与|跟]{b}[相加|加起来|加在一起][等于多少|是多少|得多少]",
        "[请把|把|将|请将]{a}[和|与]{b}[相加|加起来|加在一起]",
        "{a}[与|和]{b}之和[是多少|等于多少|为多少]",
        "[比{a}多{b}的数是多少|{a}增加{b}是多少|在{a}的基础上加{b}]",
        "{a} + {b} = ",
        "{a}+{b}=？",
        "[做一道加法|请做加法|加法题]：{a} + {b}",
    ),
    ("mul", "zh"): (
        "{a}[乘|乘以|×|*]{b}[等于多少|是多少|等于几|得多少|的结果是多少]",
        "[请计算|计算|算一下|帮我算|帮我算一下|请帮我计算|求|请问]{a}[乘|乘以|×|*]{b}",
        "[请计算|计算|求|请求出|告诉我]{a}[和|与]{b}的[积|乘积]",
        "{a}[和|与|跟]{b}相乘[等于多少|是多少|得多少]",
        "[请把|把|将|请将]{a}[和|与]{b}相乘",
        "{a}[与|和]{b}[之积|的乘积][是多少|等于多少|为多少]",
        "[{a}的{b}倍是多少|求{a}的{b}倍|{a}的{b}倍等于多少]",
        "{a} × {b} = ",
        "{a}*{b}=？",
        "[做一道乘法|请做乘法|乘法题]：{a} × {b}",
    ),
}

# --- word problems: whole positive numbers, spoken in the order a, b -----------------------------------------------

STORIES: dict[tuple[str, str], tuple[str, ...]] = {
    ("add", "en"): (
        "{P} has {a} {O} and {Q} has {b} {O}. How many {O} [do they have altogether|do they have in total|are there in all]",
        "{P} had {a} {O} and [bought|found|got|was given] {b} more. How many {O} does {P} have now",
        "There are {a} {O} in one [box|bag|drawer|room] and {b} {O} in another. [How many {O} are there|What is the total]",
        "A {S} sold {a} {O} on [Monday|Saturday] and {b} on [Tuesday|Sunday]. How many {O} did it sell [in all|in total]",
        "{P} read {a} pages [yesterday|last week] and {b} pages [today|this week]. How many pages did {P} read",
        "{P} walked {a} steps in the morning and {b} steps in the evening. How many steps [is that|did {P} walk] in total",
        "A [train|bus|ship] carries {a} passengers. At the next stop {b} more get on. How many passengers are there now",
        "One [school|village|factory] has {a} people and the next one has {b}. How many people [live|are] there altogether",
        "{P} scored {a} points in the first game and {b} in the second. What is the total score",
        "A farmer has {a} [cows|sheep|hens] and {b} [goats|pigs|ducks]. How many animals does the farmer have",
        "{P} spent {a} [dollars|yuan|euros] on [food|books] and {b} on [clothes|travel]. How much did {P} spend in all",
        "The [red|old] [jar|shelf] holds {a} {O} and the [blue|new] one holds {b}. How many {O} do they hold together",
        "{P} saved {a} dollars last year and {b} dollars this year. How much has {P} saved in total",
        "A library had {a} books and received {b} new ones. How many books does it have now",
        "In the first half of the year {a} visitors came, in the second half {b}. How many visitors came in the whole year",
        "{P} picked {a} {O}, and {Q} picked {b}. How many did the two of them pick together",
        "A truck already weighs {a} kilograms and is loaded with {b} kilograms. What does it weigh then",
        "The [tank|pool] holds {a} litres of water and {b} litres are poured in. How many litres are in it now",
        "{P} drove {a} kilometres on the first day and {b} kilometres on the second. How far did {P} drive",
        "A recipe needs {a} grams of flour and {b} grams of sugar. How many grams [is that|are needed] together",
        "{P} is {a} years old. How old will {P} be in {b} years",
        "Last month the account held {a} yuan; since then {b} yuan came in. What is the balance now",
        "{a} students are in the yard and {b} more join them. How many students are in the yard",
        "The first [rope|road|wall] is {a} metres long, the second is {b} metres long. How long are both together",
        "{P} planted {a} {O} in spring and another {b} in autumn. How many {O} were planted",
        "[On Friday|In May] {a} letters arrived, and [on Saturday|in June] {b} letters. How many letters arrived [in total|altogether]",
        "A team of {a} workers gets {b} new members. How big is the team now",
        "{P} ate {a} {O} and there are {b} left. How many {O} were there at first",
    ),
    ("mul", "en"): (
        "There are {a} [boxes|bags|baskets|crates] with {b} {O} in each. How many {O} are there [in all|altogether|in total]",
        "{P} buys {a} {O} for {b} [dollars|yuan|euros] each. How much does {P} pay",
        "Each [box|bag|pack] holds {a} {O}. How many {O} are in {b} [of them|such ones]",
        "A [hall|cinema|field] has {a} rows with {b} [seats|chairs|trees] in each row. How many [are there|is that] in total",
        "{P} reads {a} pages a day. How many pages does {P} read in {b} days",
        "A [car|train|cyclist] goes {a} kilometres [an hour|per hour]. How far does it go in {b} hours",
        "{P} earns {a} dollars [an hour|a day|per week]. How much does {P} earn in {b} [hours|days|weeks]",
        "A machine makes {a} {O} [per minute|every hour]. How many {O} does it make in {b} [minutes|hours]",
        "{a} [children|friends|workers] get {b} {O} each. How many {O} are needed",
        "One [ticket|shirt|lamp] costs {a} yuan. What do {b} of them cost",
        "{P} runs {a} metres every day for {b} days. How many metres is that",
        "A rectangle is {a} metres long and {b} metres wide. What is its area",
        "Each of {a} [classes|teams|buses] has {b} [students|players|passengers]. How many people is that",
        "There are {a} shelves. On every shelf stand {b} books. How many books are there",
        "A hen lays {a} eggs a month. How many eggs does it lay in {b} months",
        "{P} has {a} [bundles|packets] of {b} {O}. How many {O} does {P} have",
        "A [floor|wall] is covered by {a} rows of {b} tiles. How many tiles are used",
        "If one [bottle|can] holds {a} millilitres, how much do {b} hold",
        "{P} does {a} push-ups a day. How many in {b} days",
        "A printer prints {a} pages per minute. How many pages does it print in {b} minutes",
        "The [hotel|house] has {a} floors with {b} [rooms|windows] on each floor. How many does it have in all",
        "{a} trucks each carry {b} {O}. How many {O} do they carry",
        "Every [student|guest] receives {a} {O}, and there are {b} of them. How many {O} are handed out",
        "{P} puts {a} dollars aside each month. How much is it after {b} months",
        "A garden has {a} beds, and in each bed grow {b} {O}. How many {O} grow there",
        "A [kilogram|metre|litre] costs {a} yuan. How much are {b} [kilograms|metres|litres]",
    ),
    ("add", "zh"): (
        "{P}有{a}个{O}，{Q}有{b}个{O}，[他们一共有多少个|两人一共有多少个|一共有几个]{O}",
        "{P}有{a}个{O}，又[买了|得到|找到]{b}个，[现在有多少个|现在一共有多少个]",
        "商店上午卖出{a}个{O}，下午卖出{b}个，[一天一共卖出多少个|一共卖了多少个]",
        "[图书馆|学校]原来有{a}本书，又买来{b}本，现在有多少本书",
        "{P}昨天走了{a}步，今天走了{b}步，两天一共走了多少步",
        "[公交车|火车]上有{a}人，又上来{b}人，现在车上有多少人",
        "一班有{a}名学生，二班有{b}名学生，两个班共有多少名学生",
        "{P}第一次得了{a}分，第二次得了{b}分，总分是多少",
        "{P}买书花了{a}元，买衣服花了{b}元，一共花了多少元",
        "果园里有{a}棵苹果树和{b}棵梨树，一共有多少棵树",
        "第一天行了{a}千米，第二天行了{b}千米，两天共行多少千米",
        "水池里有{a}升水，又加入{b}升，现在有多少升水",
        "{P}去年存了{a}元，今年存了{b}元，总共存了多少元",
        "农场里有{a}只羊和{b}头牛，共有多少[只动物|头牲畜]",
        "{P}今年{a}岁，{b}年后是多少岁",
    ),
    ("mul", "zh"): (
        "每[盒|箱|袋]有{a}个{O}，{b}[盒|箱|袋]一共有多少个{O}",
        "有{a}[盒|箱|袋]{O}，每[盒|箱|袋]{b}个，[一共有多少个|总共多少个]",
        "{P}买了{a}个{O}，每个{b}元，[一共要付多少元|一共花了多少钱|要多少钱]",
        "一[本书|张票|件衣服]{a}元，买{b}[本|张|件]要多少元",
        "{P}每天看{a}页书，{b}天看多少页",
        "汽车每小时行{a}千米，{b}小时行多少千米",
        "教室里有{a}排座位，每排{b}个，一共有多少个座位",
        "工人每天做{a}个零件，{b}天做多少个零件",
        "每班有{a}名学生，{b}个班共有多少名学生",
        "长方形长{a}米，宽{b}米，面积是多少平方米",
        "{P}每月存{a}元，{b}个月存多少元",
        "果园里有{a}行树，每行{b}棵，共有多少棵树",
        "一台机器每分钟生产{a}个{O}，{b}分钟生产多少个",
        "{a}个小朋友每人分到{b}个{O}，一共需要多少个{O}",
    ),
}

FILL: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "P": ("Anna", "Ben", "Carla", "Wei", "Li Na", "Omar", "Sofia", "Tom", "Grace", "Hugo", "My sister", "The teacher"),
        "Q": ("David", "Emma", "Farid", "Jun", "Kate", "Leo", "Maria", "Noah", "Ruth", "Zhang Min", "her brother"),
        "O": ("apples", "books", "coins", "pencils", "stamps", "marbles", "oranges", "cards", "eggs", "flowers", "toys",
              "cookies", "screws", "bottles", "chairs", "stickers", "nuts", "candles", "tomatoes", "bricks"),
        "S": ("shop", "market", "bakery", "store", "factory", "bookshop"),
    },
    "zh": {
        "P": ("小明", "小红", "小刚", "李雷", "妈妈", "爷爷", "王老师", "小丽"),
        "Q": ("小华", "韩梅梅", "弟弟", "爸爸", "小芳", "张阿姨"),
        "O": ("苹果", "橘子", "鸡蛋", "铅笔", "本子", "气球", "玩具", "糖果", "杯子", "螺丝", "桃子"),
    },
}  # fmt: skip

# --- several steps ---------------------------------------------------

# (phrase, shape): in the shape, 0 is the first number spoken, 1 the second and so on; sub-expressions are tuples.
Shape = tuple[str, object, object]
CHAINS: dict[str, tuple[tuple[str, Shape], ...]] = {
    "en": (
        ("Add {a} and {b}, then multiply the [result|sum] by {c}", ("mul", ("add", 0, 1), 2)),
        ("[First add|First, add] {a} and {b}. Then multiply what you get by {c}", ("mul", ("add", 0, 1), 2)),
        ("Multiply the sum of {a} and {b} by {c}", ("mul", ("add", 0, 1), 2)),
        ("What is the sum of {a} and {b}, [times|multiplied by] {c}", ("mul", ("add", 0, 1), 2)),
        ("Multiply {a} by {b}, then add {c} [to the result|to it]", ("add", ("mul", 0, 1), 2)),
        ("[First multiply|Begin by multiplying] {a} and {b}. [After that|Then] add {c}", ("add", ("mul", 0, 1), 2)),
        ("What is the product of {a} and {b}, plus {c}", ("add", ("mul", 0, 1), 2)),
        ("What is {a} times {b}, and {c} more", ("add", ("mul", 0, 1), 2)),
        ("Add {a} and {b}, then add {c} to the sum", ("add", ("add", 0, 1), 2)),
        ("[Add up|Sum] the three numbers {a}, {b} and {c}", ("add", ("add", 0, 1), 2)),
        ("What is the [sum|total] of {a}, {b} and {c}", ("add", ("add", 0, 1), 2)),
        ("What is the product of {a}, {b} and {c}", ("mul", ("mul", 0, 1), 2)),
        ("Multiply {a} by {b} and the result by {c}", ("mul", ("mul", 0, 1), 2)),
        ("There are {a} boxes with {b} {O} each and {c} loose {O}. How many {O} are there", ("add", ("mul", 0, 1), 2)),
        ("{P} has {a} {O} and gets {b} more. {Q} has {c} times as many. How many does {Q} have", ("mul", ("add", 0, 1), 2)),
        ("{P} works {a} hours at {b} dollars an hour and gets a bonus of {c} dollars. How much is it in all",
         ("add", ("mul", 0, 1), 2)),
        ("A shop sold {a} {O} on Monday, {b} on Tuesday and {c} on Wednesday. How many in all", ("add", ("add", 0, 1), 2)),
        ("A box is {a} cm long, {b} cm wide and {c} cm high. What is its volume", ("mul", ("mul", 0, 1), 2)),
        ("To {a} add the product of {b} and {c}", ("add", 0, ("mul", 1, 2))),
        ("What is {a} plus the product of {b} and {c}", ("add", 0, ("mul", 1, 2))),
        ("Multiply {a} by the sum of {b} and {c}", ("mul", 0, ("add", 1, 2))),
        ("What is {a} times the sum of {b} and {c}", ("mul", 0, ("add", 1, 2))),
        ("Add the product of {a} and {b} to the product of {c} and {d}", ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("Multiply the sum of {a} and {b} by the sum of {c} and {d}", ("mul", ("add", 0, 1), ("add", 2, 3))),
        ("What do {a} times {b} and {c} times {d} make together", ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("{P} buys {a} {O} at {b} dollars each and {c} bottles at {d} dollars each. What does it cost in all",
         ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("In one hall are {a} rows of {b} chairs, in the other {c} rows of {d}. How many chairs are there",
         ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("Add {a}, {b}, {c} and {d}", ("add", ("add", ("add", 0, 1), 2), 3)),
        ("Add {a} and {b}, multiply by {c} and then add {d}", ("add", ("mul", ("add", 0, 1), 2), 3)),
        ("[Take {a}, multiply it|Start with {a}, multiply it] by {b}, add {c} and multiply all of it by {d}",
         ("mul", ("add", ("mul", 0, 1), 2), 3)),
        ("{P} packs {a} boxes with {b} {O} each, finds {c} more and then {d} more. How many {O} is that",
         ("add", ("add", ("mul", 0, 1), 2), 3)),
    ),
    "zh": (
        ("先把{a}和{b}相加，再[乘以|乘]{c}", ("mul", ("add", 0, 1), 2)),
        ("{a}加{b}的和[乘以|乘|再乘以]{c}[等于多少|是多少]", ("mul", ("add", 0, 1), 2)),
        ("{a}与{b}的和的{c}倍是多少", ("mul", ("add", 0, 1), 2)),
        ("先算{a}乘以{b}，再加上{c}", ("add", ("mul", 0, 1), 2)),
        ("{a}乘以{b}的积[加上|再加|加]{c}[等于多少|是多少]", ("add", ("mul", 0, 1), 2)),
        ("{a}的{b}倍加上{c}是多少", ("add", ("mul", 0, 1), 2)),
        ("{a}、{b}和{c}的[和|总和]是多少", ("add", ("add", 0, 1), 2)),
        ("求{a}、{b}、{c}三个数的乘积", ("mul", ("mul", 0, 1), 2)),
        ("每盒{a}个{O}，{b}盒，另外还有{c}个，一共多少个{O}", ("add", ("mul", 0, 1), 2)),
        ("{P}每小时挣{a}元，做了{b}小时，另得奖金{c}元，一共多少元", ("add", ("mul", 0, 1), 2)),
        ("{a}加上{b}与{c}的积是多少", ("add", 0, ("mul", 1, 2))),
        ("{a}乘以{b}与{c}的和是多少", ("mul", 0, ("add", 1, 2))),
        ("{a}与{b}的积加上{c}与{d}的积是多少", ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("{a}加{b}的和乘以{c}加{d}的和等于多少", ("mul", ("add", 0, 1), ("add", 2, 3))),
        ("{P}买{a}个{O}，每个{b}元，又买{c}本书，每本{d}元，一共要多少元", ("add", ("mul", 0, 1), ("mul", 2, 3))),
        ("把{a}、{b}、{c}、{d}加在一起是多少", ("add", ("add", ("add", 0, 1), 2), 3)),
        ("{a}加{b}，乘以{c}，再加{d}，得多少", ("add", ("mul", ("add", 0, 1), 2), 3)),
        ("每箱{a}个{O}，{b}箱，再加{c}个，后来又送来{d}个，共有多少个", ("add", ("add", ("mul", 0, 1), 2), 3)),
    ),
}  # fmt: skip

EXPRESSION: dict[str, tuple[str, ...]] = {
    "en": (
        "[Compute|Calculate|Evaluate|Work out|Solve|Find] {e}",
        "[What is|What's|How much is] {e}",
        "{e}",
        "{e} =",
        "{e} = ?",
        "[Please calculate|Can you compute|Could you work out|Help me with|I need the value of|Tell me the value of] {e}",
        "[The exercise|The sheet|The task] is: {e}",
        "[What does|What would] {e} [equal|give|come to]",
    ),
    "zh": (
        "[计算|请计算|算一下|帮我算|请帮我算一下|求|请问]{e}",
        "{e}[等于多少|是多少|等于几|的结果是多少]",
        "{e} = ",
        "{e}=？",
        "[题目是|作业题]：{e}",
    ),
}  # fmt: skip

BOTH: dict[str, tuple[str, ...]] = {
    "en": ("[What is|Compute|Calculate] {x}, and [what is|also] {y}", "{x} and {y}", "First {x}, then {y}"),
    "zh": ("[请计算|计算]{x}，还有{y}", "{x}和{y}分别是多少", "先算{x}，再算{y}"),
}

BEFORE: dict[str, tuple[str, ...]] = {
    "en": ("Hi! ", "Hello, ", "Hey, ", "Quick question: ", "A small sum for you: ", "Good morning. ", "I am stuck. ",
           "Use your tools: ", "One more: ", "OK, next: ", "Let's see. "),
    "zh": ("你好，", "您好！", "请问一下，", "有个问题：", "帮个忙，", "下一题：", "用工具算一下："),
}  # fmt: skip
AFTER: dict[str, tuple[str, ...]] = {
    "en": ("[ Use the function {tool}.| Use {tool}.| Call {tool} for it.| Please use the tool {tool}.]",
           "[ Please use the tools.| Use a tool.| Don't do it in your head.| Use the functions you have.]",
           "[ Thanks!| Thank you.| Please.| I need it for school.| Be quick.| It is important.]"),
    "zh": ("[请使用{tool}函数。|用{tool}工具。|请调用{tool}。]", "[请用工具计算。|不要心算。|请使用工具。]", "[谢谢！|谢谢。|很急。]"),
}  # fmt: skip

ANSWER = {"en": "The answer is {r}.", "zh": "答案是{r}。"}
ANSWERS = {"en": "The answers are {x} and {y}.", "zh": "答案分别是{x}和{y}。"}

# --- tools ---------------------------------------------------------------------------------------------------------

NAME_PREFIX = ("", "", "", "do_", "math_", "my_", "get_", "work_out_", "simple_", "basic_", "int_", "run_")
NAME_CORE = {
    "add": ("add", "add", "add", "sum", "plus", "addition", "total", "sum_up", "add_up", "adder"),
    "mul": ("mul", "mul", "mul", "multiply", "times", "product", "multiplication", "mult", "prod", "multiplier"),
}
NAME_SUFFIX = ("", "", "", "_two", "_numbers", "_fn", "_helper", "_values", "_ab", "_op", "_it", "2")
OPAQUE = (
    "tool_{l}",
    "f{d}",
    "func_{l}",
    "op{d}",
    "fn_{l}{d}",
    "{l}{d}",
    "action_{d}",
    "plugin_{l}",
    "skill{d}",
    "api_{l}",
)
DESCRIPTION: dict[str, tuple[str, ...]] = {
    "add": (
        "Add two numbers and return their sum.", "Add two numbers.", "Returns the sum of two numbers.", "Sum of two numbers",
        "Adds {p} and {q}.", "Compute {p} + {q}.", "Calculates the total of two values.", "Addition of two numbers.",
        "This function adds its two arguments.", "Find the sum of {p} and {q}", "Takes two numbers and gives back their sum",
        "A tool for addition.", "两个数相加", "计算两个数的和", "加法运算，返回两数之和", "返回{p}与{q}的和", "Add.",
    ),
    "mul": (
        "Multiply two numbers and return their product.", "Multiply two numbers.", "Returns the product of two numbers.",
        "Product of two numbers", "Multiplies {p} and {q}.", "Compute {p} * {q}.", "Calculates {p} times {q}.",
        "Multiplication of two numbers.", "This function multiplies its two arguments.", "Find the product of {p} and {q}",
        "Takes two numbers and gives back their product", "A tool for multiplication.", "两个数相乘", "计算两个数的积",
        "乘法运算，返回两数之积", "返回{p}与{q}的乘积", "Multiply.",
    ),
    "sub": ("Subtract {q} from {p}.", "Returns the difference of two numbers.", "两个数相减", "Subtraction of two numbers."),
    "div": ("Divide {p} by {q}.", "Returns the quotient of two numbers.", "两个数相除", "Division of two numbers."),
}  # fmt: skip
SUB_DIV_NAMES = {
    "sub": ("sub", "minus", "subtract_it", "difference"),
    "div": ("div", "divide_by", "quotient", "ratio"),
}
PARAMETERS = (
    ("a", "b"), ("a", "b"), ("a", "b"), ("x", "y"), ("first", "second"), ("n", "m"), ("i", "j"), ("lhs", "rhs"),
    ("number1", "number2"), ("y", "x"), ("arg1", "arg2"), ("op1", "op2"), ("first_number", "second_number"), ("b", "a"),
    ("alpha", "beta"), ("one", "two"), ("k", "l"), ("n1", "n2"), ("term1", "term2"), ("input_a", "input_b"), ("s", "t"),
    ("number_a", "number_b"), ("operand1", "operand2"), ("valueA", "valueB"), ("m", "n"), ("c", "d"), ("w", "z"),
)  # fmt: skip
PARAMETER_TEXT = (
    ("The first number.", "The second number."), ("first operand", "second operand"), ("A number", "Another number"),
    ("第一个数", "第二个数"), ("One of the numbers", "The other number"),
)  # fmt: skip

# Other tools: name, description, parameters {name: (type, text)}, and how they are asked for (question, arguments).
CITIES = (
    "Paris",
    "Beijing",
    "Cairo",
    "Lima",
    "Oslo",
    "Shanghai",
    "Berlin",
    "Nairobi",
    "Tokyo",
    "Rome",
    "Boston",
    "Delhi",
)
WORDS = ("house", "river", "friend", "winter", "bread", "music", "window", "garden", "letter", "stone", "cloud", "bird")
OTHERS: tuple[tuple[str, str, dict[str, tuple[str, str]], tuple[str, ...], tuple[str, ...]], ...] = (
    ("weather_report", "Get the current weather of a city.", {"city": ("string", "The city's name.")},
     ("What is the weather in {v}?", "Is it raining in {v} now?", "{v}今天天气怎么样？", "Tell me the weather of {v}."), CITIES),
    ("local_time", "Returns the local time of a place.", {"place": ("string", "city")},
     ("What time is it in {v}?", "Tell me the time in {v}.", "{v}现在几点？"), CITIES),
    ("translate_word", "Translate an English word into Chinese.", {"word": ("string", "The word.")},
     ("Translate the word {v}.", "How do you say '{v}' in Chinese?", "{v}用中文怎么说？"), WORDS),
    ("define", "Look up a word in the dictionary.", {"term": ("string", "the word to look up")},
     ("Look up the word {v}.", "What does the dictionary say about {v}?", "查一下词典里的{v}。"), WORDS),
    ("play_song", "Play music about something.", {"theme": ("string", "what the song is about")},
     ("Play a song about a {v}.", "Play some {v} music.", "放一首关于{v}的歌。"), WORDS),
    ("find_hotel", "Find a hotel in a city.", {"location": ("string", "")},
     ("Find me a hotel in {v}.", "I need a hotel in {v}.", "帮我找{v}的酒店。"), CITIES),
    ("backwards", "Reverse the letters of a text.", {"text": ("string", "The text to reverse.")},
     ("Reverse the word {v}.", "Spell {v} backwards.", "把{v}倒过来写。"), WORDS),
    ("send_mail", "Send an e-mail to somebody.", {"to": ("string", "Receiver."), "subject": ("string", "Subject.")}, (), ()),
    ("wake_me", "Set an alarm clock.", {"time": ("string", "hh:mm")}, (), ()),
    ("share_price", "Get the price of a share.", {"symbol": ("string", "Ticker symbol.")}, (), ()),
    ("read_file", "Read a file from disk.", {"path": ("string", "Path of the file.")}, (), ()),
    ("draw_picture", "画一张图片", {"prompt": ("string", "图片内容")}, (), ()),
    ("search_web", "Search the web.", {"query": ("string", "What to search for.")}, (), ()),
    ("to_fahrenheit", "Convert degrees Celsius to Fahrenheit.", {"celsius": ("number", "Temperature.")}, (), ()),
    ("random_number", "Return a random number below a limit.", {"limit": ("integer", "The limit.")}, (), ()),
    ("days_between", "Days between two dates.", {"start": ("string", "First date."), "end": ("string", "Last date.")}, (), ()),
)  # fmt: skip

# Calculations that the tools at hand cannot do: they are answered without a call.
UNFIT: dict[str, tuple[str, ...]] = {
    "sub": ("What is {a} minus {b}?", "Subtract {b} from {a}.", "{a} - {b} = ?", "{a}减{b}等于多少？", "{a} - {b}",
            "How much is left if I take {b} from {a}?", "What is the difference between {a} and {b}?", "请计算{a}减去{b}。"),
    "div": ("What is {a} divided by {b}?", "Divide {a} by {b}.", "{a} / {b} = ?", "{a}除以{b}等于多少？", "{a} ÷ {b}",
            "Share {a} apples between {b} children. How many does each one get?", "请计算{a}除以{b}。"),
    "other": ("What is the square root of {a}?", "Is {a} a prime number?", "What is the logarithm of {a}?", "{a}的平方根是多少？",
              "Is {a} even or odd?", "Round {a} to the nearest hundred.", "Which is larger, {a} or {b}?", "{a}和{b}哪个大？",
              "Count down from {a}.", "Write {a} in Roman numerals.", "What is {a} percent of {b}?", "把{a}写成汉字。"),
}  # fmt: skip

# Without any number to calculate with, beside what the model asks itself in its own conversations.
CHAT: dict[str, tuple[str, ...]] = {
    "en": ("Hello!", "Who are you?", "What can you do?", "Write a poem about {w}.", "Tell me about {c}.", "Describe a {w}.",
           "Why do people like {w}s?", "What is a {w}?", "Write a short letter to a {w}.", "Explain what a {w} is for.",
           "Should I travel to {c}?", "What is {c} famous for?", "Write a sentence with the word {w}.", "Thank you!",
           "How are you today?", "Introduce yourself.", "What do you think of {c}?", "Tell me a joke about a {w}.",
           "Give me three ideas for a gift.", "What should I cook tonight?", "What is addition?", "What does multiply mean?",
           "Who invented numbers?", "Do you like mathematics?", "What tools do you have?", "Write a fairy tale about a {w}."),
    "zh": ("你好！", "你是谁？", "你能做什么？", "写一首关于{w}的诗。", "介绍一下{c}。", "请介绍一下你自己。", "谢谢你！", "你今天好吗？",
           "讲一个笑话。", "什么是加法？", "为什么人们喜欢数学？", "{c}有什么好玩的？", "推荐一本书。", "给我写一封信。", "早上好！"),
}  # fmt: skip
